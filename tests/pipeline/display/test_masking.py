"""Test `display.masking`: secrets in settings are found and masked, and harmless text stays."""

import os

import pytest
import yaml

from pipeline.config import flatten
from pipeline.display.errors import UserError
from pipeline.display.masking import found, mask, mask_yaml, masked
from pipeline.planning.compose import derived_name
from pipeline.records import rundir
from pipeline.report import run_data
from pipeline.tracking import rows
from tests.launcher import no_longer_than
from tests.runs import make_run

HEX = "0123456789abcdef0123456789abcdef01234567"

SECRET = [
    (f"export WANDB_API_KEY={HEX}", "export WANDB_API_KEY=***"),
    ("export WANDB_API_KEY=hunter2", "export WANDB_API_KEY=***"),
    ("HF_TOKEN=hunter2", "HF_TOKEN=***"),
    ("AWS_SECRET_ACCESS_KEY=a/b+c", "AWS_SECRET_ACCESS_KEY=***"),
    ("password=hunter2", "password=***"),
    ("DB_PASSWORD=1234", "DB_PASSWORD=***"),
    ("PASSWORD='a b;c' run", "PASSWORD=*** run"),
    ("--password hunter2", "--password ***"),
    ("--token=hunter2", "--token=***"),
    ("ALL,WANDB_API_KEY=hunter2,X=1", "ALL,WANDB_API_KEY=***,X=1"),
    ("cluster.sbatch={password: hunter2}", "cluster.sbatch={password: ***}"),
    ("cluster.setup=[\"export A_TOKEN='a b'\"]", 'cluster.setup=["export A_TOKEN=***"]'),
    (f"MY_KEY={HEX}", "MY_KEY=***"),
    (f"wandb login {HEX}", "wandb login ***"),
    ("curl -u me:hunter2 https://x", "curl -u me:*** https://x"),
    ("curl -H 'Authorization: Bearer hunter2'", "curl -H 'Authorization: Bearer ***'"),
    ("REDISCLI_AUTH=hunter2", "REDISCLI_AUTH=***"),
    ("curl -H 'X-Api-Key: hunter2' x", "curl -H 'X-Api-Key: ***' x"),
    ('wget --header="X-Auth-Token: hunter2" x', 'wget --header="X-Auth-Token: ***" x'),
    (
        "aws configure set aws_secret_access_key hunter2",
        "aws configure set aws_secret_access_key ***",
    ),
    (f"wandb login --relogin --host=http://x {HEX}", "wandb login --relogin --host=http://x ***"),
    (f"wandb login --host http://x {HEX}", "wandb login --host http://x ***"),
    ("openssl enc -pass pass:hunter2", "openssl enc -pass pass:***"),
    ("openssl rsa -passin 'pass:hunter2' -in k", "openssl rsa -passin 'pass:***' -in k"),
    ("sshpass -p hunter2 ssh x", "sshpass -p *** ssh x"),
    ("mysql -u me -phunter2 db", "mysql -u me -p*** db"),
    ("redis-cli -h x -a hunter2", "redis-cli -h x -a ***"),
    ("unzip -P hunter2 x.zip", "unzip -P *** x.zip"),
    ("smbclient //h/s -U me%hunter2", "smbclient //h/s -U me%***"),
    ("sudo -S mount x <<< hunter2", "sudo -S mount x <<< ***"),
    ("echo hunter2 | docker login --password-stdin", "echo *** | docker login --password-stdin"),
    ("setenv WANDB_API_KEY hunter2", "setenv WANDB_API_KEY ***"),
    ("set -x DB_PASSWORD hunter2", "set -x DB_PASSWORD ***"),
    (
        "rclone config create r s3 secret_access_key x1",
        "rclone config create r s3 secret_access_key ***",
    ),
    ("https://a.blob/f?sv=1&sig=a%2Fb&x=1", "https://a.blob/f?sv=1&sig=***&x=1"),
    ("https://s3/x?X-Amz-Signature=fe5f", "https://s3/x?X-Amz-Signature=***"),
    ("https://hooks.slack.com/services/T0/B0/Xx", "https://hooks.slack.com/services/***"),
    ("export TOKEN=hunter2", "export TOKEN=***"),
    ("export GITLAB_PAT=hunter2", "export GITLAB_PAT=***"),
    ("WANDB_KEY=hunter2", "WANDB_KEY=***"),
    ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "***"),
    ("dapi0123456789abcdef0123456789abcdef", "***"),
    ("https://user:hunter2@host/x", "https://user:***@host/x"),
    ("s3://key:hunter2@bucket", "s3://key:***@bucket"),
    ("s3://key:hunter2/bucket", "s3://key:***/bucket"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "***"),
    ("echo sk-proj-abcdef0123456789abcdef", "echo ***"),
    ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
    ("PW=x srun y", "PW=*** srun y"),
    ("pw=x", "pw=***"),
    ("root_pw=1234", "root_pw=***"),
    ("AUTH=user:x", "AUTH=***"),
    ("auth=user:x", "auth=***"),
    ("http -a me:x https://h", "http -a me:*** https://h"),
    ("X-Vault-Token: x", "X-Vault-Token: ***"),
    ("http GET h X-Api-Key:x", "http GET h X-Api-Key:***"),
    ("PRIVATE-TOKEN: x", "PRIVATE-TOKEN: ***"),
    ("Ocp-Apim-Subscription-Key: x", "Ocp-Apim-Subscription-Key: ***"),
    ("Cookie: session=x; a=b", "Cookie: ***"),
    ("curl -b session=x https://h", "curl -b session=*** https://h"),
    ("curl --proxy-user me:x h", "curl --proxy-user me:*** h"),
    ("curl --oauth2-bearer x h", "curl --oauth2-bearer *** h"),
    ("az login -u me -p hunter2", "az login -u me -p ***"),
    ("helm registry login h -u me -p hunter2", "helm registry login h -u me -p ***"),
    ("vault login s.hunter2", "vault login ***"),
    ("vault login -no-print s.hunter2", "vault login -no-print ***"),
    ("docker login -u me -p x h", "docker login -u me -p *** h"),
    ("db_pass=hunter2", "db_pass=***"),
    ("mount -o user=me,pass=hunter2", "mount -o user=me,pass=***"),
    ("Server=h;Uid=me;PWD=x;", "Server=h;Uid=me;PWD=***;"),
    ("https://h/?token=x&a=b", "https://h/?token=***&a=b"),
    ("printf 'WANDB_API_KEY: x' > f", "printf 'WANDB_API_KEY: ***' > f"),
    (r"echo {\"password\": \"x\"}", r"echo {\"password\": \***}"),
    ('curl -d \'{"token": "x"}\' h', "curl -d '{\"token\": ***}' h"),
    ("wandb.login(key='x')", "wandb.login(key=***)"),
    ("export HF_TOKEN=${HF_TOKEN:-x}", "export HF_TOKEN=${HF_TOKEN:-***}"),
    ("KAGGLE_KEY=x", "KAGGLE_KEY=***"),
    ("SECRET_KEY_BASE=x", "SECRET_KEY_BASE=***"),
    (r"printf 'machine h\nlogin me\npassword x'", r"printf 'machine h\nlogin me\npassword ***'"),
    ("lftp -u me,x h", "lftp -u me,*** h"),
    ("ldapsearch -w x -D me", "ldapsearch -w *** -D me"),
    ("zip -P x a.zip b", "zip -P *** a.zip b"),
    ("ssh-keygen -N x -f k", "ssh-keygen -N *** -f k"),
    ("echo x | sudo -S mount y", "echo *** | sudo -S mount y"),
    ("kinit me <<< x", "kinit me <<< ***"),
    ("set PASSWORD x", "set PASSWORD ***"),
    ("--jwt x", "--jwt ***"),
    ("basic_auth=user:x", "basic_auth=***"),
    ("creds=user:x", "creds=***"),
    ("auth: user:x", "auth: ***"),
    ("--basic-auth user:x", "--basic-auth ***"),
    ("data.args={auth:[me,hunter2]}", "data.args={auth:[me,***]}"),
    ("data.args={credentials:{user:me,value:x}}", "data.args={credentials:***}}"),
    ("id_token=x", "id_token=***"),
    ("csrf_token=x", "csrf_token=***"),
    ("X-XSRF-Token: x", "X-XSRF-Token: ***"),
    ("DEPLOY_TOKEN=x", "DEPLOY_TOKEN=***"),
    ("token=hunter2", "token=***"),
    ("Bearer x", "Bearer ***"),
    ("curl -H 'X-Auth: Bearer x'", "curl -H 'X-Auth: Bearer ***'"),
    ("BEARER=x", "BEARER=***"),
    ("--bearer x", "--bearer ***"),
    ("OTP=123456", "OTP=***"),
    ("--otp 123456", "--otp ***"),
    ("mfa_code=123456", "mfa_code=***"),
    ("--pin 1234", "--pin ***"),
    ("CARD_PIN=1234", "CARD_PIN=***"),
    ("SESSION_ID=x", "SESSION_ID=***"),
    ("JSESSIONID=x", "JSESSIONID=***"),
    ("COOKIE=session=x", "COOKIE=***"),
    ("--cookie sid=x", "--cookie ***"),
    ("sessionCookie: x", "sessionCookie: ***"),
    ("PASSWORDS=x", "PASSWORDS=***"),
    ("API_KEYS=x", "API_KEYS=***"),
    ("password : x", "password : ***"),
    ("jwt=x", "jwt=***"),
    ("wpa_psk=x", "wpa_psk=***"),
    ('"api_key": "x"', '"api_key": ***'),
    ("<password>x</password>", "<password>***</password>"),
    ("WEBHOOK_URL=https://h/x", "WEBHOOK_URL=***"),
    ("SharedAccessSignature=sv=1", "SharedAccessSignature=***"),
    ("AccountName=a;AccountKey=x==;B=c", "AccountName=a;AccountKey=***;B=c"),
    ("OPENAI_KEY=x", "OPENAI_KEY=***"),
    ("gsk_abcdefghijklmnop0123", "***"),
    ("hvs.abcdefghijklmnop0123", "***"),
    ("xapp-1-A0123456789-abc", "***"),
    ("read -r TOKEN <<< hunter2", "read -r TOKEN <<< ***"),
    ("IFS=: read -r ME PASSWORD <<< 'me:x'", "IFS=: read -r ME PASSWORD <<< ***"),
    ("read TOKEN < <(echo x)", "read TOKEN < <(echo ***"),
    ("read TOKEN <<EOF\nx\nEOF", "read TOKEN <<EOF\n***\nEOF"),
    ("printf -v TOKEN %s x", "printf -v TOKEN %s ***"),
    ("export TOKEN=$(echo x)", "export TOKEN=$(echo ***)"),
    ("echo hunter2 > ~/.token", "echo *** > ~/.token"),
    ("printf %s x >> /k/password.txt", "printf %s *** >> /k/password.txt"),
    ("/mnt/me:hunter2@host/x", "/mnt/me:***@host/x"),
    ("git clone me:hunter2@host/x", "git clone me:***@host/x"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMII\n", "-----BEGIN RSA PRIVATE KEY-----***"),
]
HARMLESS = [
    "data.root=/a/b", "cluster.setup=['module load cuda']", f"name={HEX}", f"git checkout {HEX}",
    "tokenizer=bpe", "TOKENIZERS_PARALLELISM=false", "export HF_TOKEN=$(cat ~/.hf)", "KEY=value",
    "export WANDB_API_KEY=$WANDB_API_KEY", 'export A_TOKEN="$X"', "source ~/.secrets", "monkey=1",
    "HF_TOKEN_PATH=/a/b", "HF_TOKEN=/run/secrets/hf", "sort_key=name", "max_tokens=100",
    "cls_token=true", "bypass=1", "num_pass=3", "author=me", "ssh-add ~/.ssh/id_rsa", "sk-learn",
    "method.branches=[kxk,1x1_kxk]", "model.name=hf_hub:timm/resnet50", "--key value",
    "secret=false", "password=null", "data.password: input should be a string", "PKEY=0x8001",
    "model.global_pool=token", "http://host:8080/x", "https://github.com/a/b@main", "--mem=10G",
    "rsync me@host:/x .", "name=sk-resnet18-s0", "7z x -o/tmp a.7z", "mysql -p db", "openssl version", "set -e",
    "export A", "sudo mount x", "echo a | tee b", "https://x/f?signed=1", "data.path=compat=1", "set -euo pipefail",
    "token=cls", "git config --global user.name me", "experiment=hf_finetune_resnet50", "password=***",
    "PWD=/home/me", "PWD=.", "OLDPWD=/x", "AUTHOR=me", "author: me", "--token-bucket 5", "keyboard=us",
    "passes=3", "pass 2 of 3", "second pass: fast", "forward_pass=fast", "n_pass=3", "compass=north",
    "train.seed=12345678901234567", f"sha256={HEX}", f"data.digest={HEX}", "primary_key=id", "sort-key: name",
    "vault login -method=ldap username=me", "ssh login01 -p 22", "ssh login -p 22", "auth=none", "AUTH=basic", "SLURM_AUTH=munge", "--auth munge", "PAT=*.jpg", "error: --api-token: expected one argument",
    "data.password: field required", "password is missing", "/a/secret=x/b", "unset PASSWORD", "read -rs PW",
    "X=${HF_TOKEN:?missing}", "module load key/2", "docker run -p 80:80 x", "curl -b cookies.txt x", "ssh -N -L 1:x:2 h",
    "mask_token=[MASK]", "random_token=true", "eos_token=50256", "token=mean", "blocks.0.0.conv_pw=0.5", "conv_pw: 1x1",
    "cookie=12", "--cookies cookies.txt", "auth=host", "bearer: 5", "XDG_SESSION_ID=3", "Bearer token is missing",
    "glass-bottle-with-a-long-name: 3", "model.name=hf-hub:timm/vit_base_patch16_224.augreg_in21k", "license: apache-2.0",
    "outputs/stages/train-0123456789ab", "sha256: " + 2 * HEX[:32], "code=0123456789ab", f"revision: {HEX}", "pin=true",
    "echo hello | sudo tee x", "git clone git@github.com:a/b.git", "host:5000/image:tag", "cookie_policy=strict",
    "{mail-type:END,mail-user:me@host}", "mailto:me@host", "docker pull a/b:latest@sha256:" + HEX, "read A B <<< 'x y'",
    "read -r TOKEN < ~/.token", "echo done > token_count.txt", "TOKEN=$(cat ~/.token)", "a: me@host",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), SECRET, ids=[text for text, _ in SECRET])
def test_a_secret_is_masked(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown
    assert list(found({"cluster": {"setup": ["module load cuda", text]}})) == [
        ("cluster.setup", shown)
    ]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_alone(text):
    assert mask(text) == text
    assert not list(found({"setup": [text]}))


def test_settings_are_masked_by_their_key_too():
    tree = {
        "data": {"api_key": "a b", "password": 1234, "size": 32, "key": "class"},
        "srun": ["--password", "it's", "--key", "v"],
        "source": {"credentials": {"user": "a", "value": "b"}, "cookies": {"sid": {"x": "c"}}},
        "args": {"auth": ["me", "x"], "cookie": "sid=x", "mean": [0.5, 0.5], "token": "cls"},
        "hub": {"auth": {"token": "x", "kind": "y"}, "api": {"key": "z"}, "pass": "w"},
    }
    assert masked(tree) == {
        "data": {"api_key": "***", "password": "***", "size": 32, "key": "class"},
        "srun": ["--password", "***", "--key", "v"],
        "source": {
            "credentials": {"user": "***", "value": "***"},
            "cookies": {"sid": {"x": "***"}},
        },
        "args": {"auth": 2 * ["***"], "cookie": "***", "mean": [0.5, 0.5], "token": "cls"},
        "hub": {"auth": {"token": "***", "kind": "y"}, "api": {"key": "***"}, "pass": "***"},
    }
    assert yaml.safe_load(mask_yaml(yaml.safe_dump(tree))) == masked(tree)
    assert masked(flatten(tree)) == flatten(masked(tree))
    shown = dict(found(tree))
    assert shown["source.credentials"] == shown["source.cookies"] == shown["args.cookie"] == "***"


def test_no_message_name_or_page_contains_a_secret(tmp_path):
    assert "hunter2" not in str(UserError("train.x=password=hunter2: no"))
    choices = {"data": "d", "model": "m", "method": "p", "train": "d"}
    assert derived_name(choices, 0, ["+train.api_key=hunter2"]) == "d-m-p-s0-api_key_"[:-1]
    changed = {"model.name": "https://me:hunter2@host"}
    run = make_run(tmp_path, "r", command="launch X_TOKEN=hunter2", changed=changed, finished=())
    story = run_data.read(run)
    assert "hunter2" not in f"{story.run} {story.config} {rows.settings(run)}"
    assert "https://me:***@host" in story.config


def test_a_file_with_a_secret_is_readable_only_by_its_owner(tmp_path):
    for value, mode in (
        ("HF_TOKEN=hunter2", 0o600),
        ({"auth": {"token": "x"}}, 0o600),
        ({"credentials": {"user": {"first": "x"}}}, 0o600),
        ("module load cuda", 0o644),
    ):
        rundir.write_yaml(tmp_path / "config.yaml", {"cluster": {"setup": [value]}})
        settings = flatten({"data": {"args": {"header": value}}})
        rundir.write_json(tmp_path / "seal.json", {"step": 1, "identity": settings}, settings)
        for name in ("config.yaml", "seal.json"):
            assert (tmp_path / name).stat().st_mode & 0o777 & ~os.umask(0o022) == mode


def test_a_launch_warns_of_a_secret_and_masks_it(launch):
    given = ("model=vgg_small", "fuse.licence=https://me:hunter2@host", "dry_run=true")
    shown, planned = launch("--cfg", "job", *given), launch(*given)
    for done in (shown, planned):
        assert "https://me:***@host" in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
    assert planned.stderr.startswith("warning: fuse.licence looks as if it held a secret")


def test_masking_a_long_text_is_fast():
    with no_longer_than(120):
        mask("x" * 200_000 + "a-" * 50_000 + "a_key " * 20_000 + "curl " * 20_000 + "uid=" * 20_000)


def test_a_root_that_contains_a_secret_is_masked(inside):
    secret = "ghp_abcdefghijklmnopqrstuvwxyz0123"
    inside.root = f"{inside.root}/{secret}"
    code, _, errors = inside("dry_run=true")
    assert code == 0
    assert "/*** looks as if it held a secret, and paths are shown; choose another" in errors
    assert secret not in errors
