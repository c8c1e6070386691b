"""Find keys, tokens and passwords among the settings, and mask them wherever they are shown.

A secret is recognized by its name (`HF_TOKEN=…`, `--password …`), its form (`ghp_…`) or its place
(`https://user:…@host`). A reference such as `$TOKEN` is not a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"

KEYS = (
    "api|access|secret|private|account|encryption|auth|signing|license|subscription|shared"
    "|master|storage|wandb|kaggle|service|admin|aws|azure|gcp|hf|openai|anthropic"
)
TOKENS = (
    "api|access|auth|bearer|bot|refresh|session|secret|private|vault|hf|gh|github|gitlab|wandb|id"
    "|[cx]srf|device|deploy|push|user|service|sas|security|identity|client|app|login|oauth|sso"
    "|registry|runner|npm|pypi|slack|aws|azure|gcp"
)
PASSES = "db|user|root|admin|ssh|smtp|mail|ftp|http|proxy|ldap|sql|redis|bind|my"
# a value with such a name (a key, or keys joined by dots) is secret; with a name that only ends in
# one of `NAME`, the value must look random
TELLING = re.compile(
    r"(?:passw(?:or)?ds?|passphrase|secrets?|secret_key_base|cred(?:ential)?s?|userpwd"
    r"|(?:^|[^a-z])(?:bearer|t?otp|jwt|psk|cookies?)|[a-z]cookie|(?:mfa|2fa|otp)[_-]?code"
    r"|sess(?:ion)?[_-]?id|access[_-]?signature|webhook(?:[_-]?url)?"
    rf"|(?:{KEYS})[._-]?keys?|(?:{TOKENS})[._-]?tokens?|(?:{PASSES})[._-]?(?:pass|pw)"
    r"|(?:^|\.)(?:(?:--)?pass|x-[\w-]+-(?:key|token)|(?-i:TOKEN|PAT|PIN|AUTH))"
    r"|--?(?:token|pin)|(?:^|(?<!conv)[\d_.-])pw|(?<![a-z])(?-i:[Pp]wd)"
    r"|(?-i:[A-Z0-9]_(?:TOKEN|PASS|PWD|PAT|PIN|AUTH)))$",
    re.IGNORECASE,
)
NAME = (
    r"(?P<name>[\w.-]{0,80}(?:passw(?:or)?ds?|passphrase|secrets?|secret_key_base"
    r"|cred(?:ential)?s?|keys?|tokens?|auth|pass|pw|pwd|pat|jwt|bearer|otp|(?-i:PIN)|-pin|psk|cookies?"
    r"|(?:mfa|2fa|otp)[_-]?code|sess(?:ion)?[_-]?id|access[_-]?signature|webhook(?:[_-]?url)?))"
)
# an unquoted value ends where a shell, a list, a mapping or the options of sbatch would go on
VALUE = r"""(?P<value>"[^"]*"|'[^']*'|(?:(?!,\s*[\w.+-]+=|[\]}]*(?:\s|$|,|['"]))[^\s'";])+)"""
LATER = r"\b[^;|&]{0,200}?\s"  # a later word of the same command
QUOTE = r"\\?[\"']"  # with a backslash in a text that is itself quoted
READS = r"\bread\s[^;|&<]{0,80}?(?<![\w.-])"
SAYS = r"(?:echo|printf)\s+(?:-\w\s+)?(?:\S*%\S*\s+)?"  # and what
PIPED = r"--password-stdin|sudo\s+(?:-\w+\s+)*-S|kinit|cryptsetup"  # commands that read one
NAMED = [
    re.compile(text, re.IGNORECASE)
    for text in (
        rf"(?<![\w.$-]){NAME}\s*[=:]\s*\{{(?P<value>[^{{}}]+)\}}",  # a mapping
        rf"(?<![\w./-]){NAME}\s*=\s*{VALUE}",
        rf"(?<![\w.-])(?=-){NAME}\s+(?!-){VALUE}",
        rf"(?:(?<!\$){{|,)\s*(?:{QUOTE})?{NAME}(?:{QUOTE})?\s*:\s*\\?{VALUE}",
        rf"(?<![\w./$-])(?!-|pass\s?:){NAME}\s?:\s+{VALUE}(?=\\n|['\"]|\s*$)",  # YAML, headers
        rf"(?<![\w./$-])(?=[a-z]+-){NAME}:{VALUE}",
        rf"{QUOTE}{NAME}{QUOTE}\s*:\s*\\?{VALUE}(?=\s*(?:[,}}\]]|$))",
        rf"<{NAME}>(?P<value>[^<\s]+)</",
        rf"\s(?:-H|--header)[\s=]*[\"']?{NAME}\s*:\s*{VALUE}",
        rf"\bconfig(?:ure)?\s+(?:set|create)\s[^;|&]{{0,80}}?(?<![\w.-]){NAME}\s+{VALUE}",
        rf"\b(?:setenv|set(?:\s+-\w+)?|export)\s+{NAME}\s+{VALUE}",  # in csh and fish
        rf"\$\{{{NAME}:?[-=](?P<value>[^}}$]+)\}}",  # a variable's default
        rf"{READS}{NAME}\s*<(?:<<|\s*<\((?:echo|printf))\s*{VALUE}",
        rf"{READS}{NAME}\s*<<-?\s*['\"]?\w+['\"]?(?:\n|\\n)\s*(?P<value>[^\s\\]+)",
        rf"\bprintf\s+-v\s+{NAME}\s+(?:\S*%\S*\s+)?{VALUE}",
        rf"(?<![\w./-]){NAME}\s*=\s*[\"']?(?:\$\(|`)\s*{SAYS}(?P<value>[^\s)`]+)",
        rf"\b{SAYS}{VALUE}\s*>+\s*\S{{0,80}}?{NAME}(?:\.\w+)?(?![\w.])",
    )
]
PLACED = [
    re.compile(text, re.IGNORECASE)
    for text in (
        r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,20}://[^\s/@:'\"]{0,200}:(?P<value>[^\s/@]+)@",
        # without a scheme, as in the path of a mount; sha256: is of an image, by its digest
        r"(?<![\w.,{:-])(?!mailto:)[\w.-]{1,80}:(?P<value>[^\s/@:'\"]+)@(?!sha\d+:)[\w-]",
        r"://(?P<value>(?=[^\s/@:]{0,80}\d)[\w.-]{20,200})@",
        r"\bs3[an]?://[^\s/@:'\"]{1,200}:(?P<value>[^\s/@]+)/",  # s3://KEY:SECRET/bucket
        rf"\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?{VALUE}",
        r"(?<![\w-])(?:set-)?cookie:\s+(?P<value>[^'\"\n]+)",
        r"\b(?-i:Bearer|BEARER)\s+(?!token|auth)(?P<value>[\w.~+/=-]+)",
        r"(?<![a-z])auth['\"]?\s*[:=]\s*[\[(]\s*[^,\]]{1,80},\s*(?P<value>[^\s,\])]+)",
        rf"{QUOTE}(?:token|auth){QUOTE}\s*:\s*\\?{VALUE}",
        rf"\blogin\([^)]{{0,80}}?\b(?:key|token)\s*=\s*{VALUE}",
        rf"\bwandb\s+login\s+(?:--[\w-]+(?:[=\s]\S*[./]\S*)?\s+)*(?!-){VALUE}",
        rf"\b(?:sshpass\s|login{LATER})-p\s*(?!\d+\b){VALUE}",
        rf"\bvault\s+login\s+(?:-\S+\s+)*(?!-|\w+=){VALUE}",
        rf"\bcurl{LATER}(?:-u|-U|--user|--proxy-user)[\s=]*['\"]?[^\s:'\"]+:(?P<value>[^\s'\"]+)",
        rf"\bcurl{LATER}--oauth2-bearer[\s=]+{VALUE}",
        rf"\bcurl{LATER}(?:-b|--cookie)[\s=]*['\"]?[^\s='\"]+=(?P<value>[^\s'\"]+)",
        r"(?<![\w.-])https?\s+-a\s+['\"]?[^\s:/'\"]+:(?P<value>[^\s/'\"]+)",
        rf"(?:\bmachine|login)\s+\S{{1,80}}?(?:\s|\\n)+password\s+{VALUE}",
        rf"\s-pass(?:in|out)?[\s=]+[\"']?pass:{VALUE}",
        rf"\b(?:mysql|mysqldump|mariadb|7za?){LATER}-p(?!\s){VALUE}",
        rf"\b(?:redis-cli{LATER}-a|ldap\w+{LATER}-w|openssl{LATER}-k)\s+{VALUE}",
        rf"\b(?:(?:un)?zip{LATER}-P|ssh-keygen{LATER}-N)\s*{VALUE}",
        rf"\bsmbclient{LATER}-U\s*[^\s%]+%{VALUE}",
        rf"\blftp{LATER}-u\s*[^\s,]+,{VALUE}",
        rf"\b(?:sudo|kinit)\s[^;|&]{{0,80}}?<<<\s*{VALUE}",
        rf"\b(?:echo|printf)\s+(?:-\w\s+)?{VALUE}\s*\|[^;&]{{0,200}}?(?:{PIPED})",
        rf"\b(?:uid|user(?:\s?id)?)\s*=[^;\s]{{0,80}};\s*pwd\s*=\s*{VALUE}",
        r"[?&](?:token|auth|sig|signature|x-amz-signature|x-goog-signature)=(?P<value>[^\s&'\"]+)",
        r"//hooks\.slack\.com/services/(?P<value>[\w/]+)",
        r"//(?:\w+\.)?discord(?:app)?\.com/api/webhooks/(?P<value>[\w/-]+)",
    )
]
FORMS = re.compile(
    r"(?<![A-Za-z0-9_-])(?P<value>gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|gl(?:pat|[dr]t|cbt|ptt|soat|agent)-[\w-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}|sk-(?:[a-z0-9]+-)*[A-Za-z0-9_]{16,}[\w-]*|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|(?:xox[abeprs]|xapp)-[\w-]{10,}|hv[sb]\.[\w-]{16,}|tskey-[\w-]{16,}|gsk_[A-Za-z0-9]{16,}"
    r"|whsec_\w{16,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*|wandb_v1_\w{16,}"
    r"|[sr]k_live_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}"
    r"|dop_v1_[0-9a-f]{32,}|shpat_[0-9a-f]{16,}|dapi[0-9a-f]{32}|AGE-SECRET-KEY-1\w{16,}"
    r"|nvapi-[\w-]{16,}|(?:npm|dckr_pat)_\w{20,}|pypi-[\w-]{30,})"
)
BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<value>.*?)(?:-----END|\Z)", re.DOTALL)
RANDOM = re.compile(r"[0-9a-fA-F-]{32,}|(?=.*\d)(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9_+/=.-]{20,}")
METHODS = re.compile(  # names of authentication methods, and patterns of files
    r"basic|digest|bearer|negotiate|ntlm|kerberos|gssapi|oauth2?|ldap|munge|saml|sso|iam|password"
    r"|token|jwt|.*[*?\[].*",
    re.IGNORECASE,
)
NUMERIC = re.compile(r"passw|phrase|(?:pwd?|auth|otp|code|pin)$", re.IGNORECASE)
USER = re.compile(r"[^\s:/]+:[^\s/]+")
MIXED = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[\w.+/=-]{6,}")
FILE = re.compile(r"[\w./~-]+\.(?:txt|json|sqlite|db)")
HARMLESS = re.compile(
    r"|\*+\)*|true|false|null|none|yes|no|on|off|\$.*|`.*|<.*|[~.]*/[\w./-]*",
    re.IGNORECASE | re.DOTALL,
)


def mask(text: str) -> str:
    """Return a text with `***` in place of each secret."""
    for pattern in NAMED:
        text = pattern.sub(lambda found: _masked(found, _is_secret), text)
    for pattern in (*PLACED, FORMS, BLOCK):
        text = pattern.sub(lambda found: _masked(found, lambda _, value: _is_value(value)), text)
    return text


def mask_yaml(text: str) -> str:
    """Return YAML with `***` in place of each secret; text that is not YAML is masked by `mask`."""
    import yaml

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return mask(text)
    shown = masked(tree)
    return text if shown == tree else yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _masked(found: re.Match[str], secret: Any) -> str:
    name, value = found.groupdict().get("name", ""), found["value"]
    if not secret(name, value.strip("\"'")):
        return found[0]
    start, end = (at - found.start() for at in found.span("value"))
    return f"{found[0][:start]}{MASK}{found[0][end:]}"


def _is_secret(name: str, value: str) -> bool:
    if RANDOM.fullmatch(value):
        return True
    if not _is_value(value) or not (TELLING.search(name) or _fits(name, value)):
        return False
    if re.fullmatch(r"[\d.]+", value):
        return bool(NUMERIC.search(name))
    if re.search(r"(?:auth|pat|bearer)$", name, re.IGNORECASE):
        return not METHODS.fullmatch(value)
    return not (name.lower().endswith(("cookie", "cookies")) and FILE.fullmatch(value))


def _fits(name: str, value: str) -> bool:
    """Whether an often harmless name has the value of a secret: `auth=me:x`, `token=hunter2`."""
    return any(
        re.search(rf"(?:^|[^a-z]){last}$", name, re.IGNORECASE) and form.fullmatch(value)
        for last, form in (("auth", USER), ("token", MIXED))
    )


def _is_value(value: str) -> bool:
    return not HARMLESS.fullmatch(value)


def masked(values: Any, name: str = "") -> Any:
    """Return settings, nested or flat, with `***` in place of each secret.

    Args:
        values: a setting, or a tree of settings; keys may be paths, joined by dots.
        name: the path of the values in the tree.
    """
    if isinstance(values, dict):
        return {key: masked(value, _path(name, key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        if len(values) == 2 and _is_named(name, ":".join(map(str, values))):
            return [MASK, MASK]  # auth: [user, password]
        return [_after(values[:at], masked(value, name)) for at, value in enumerate(values)]
    if isinstance(values, bool) or not isinstance(values, str | int):
        return values
    if _is_named(name, str(values)):
        return MASK
    return mask(values) if isinstance(values, str) else values


def _after(before: Any, value: Any) -> Any:
    """Return a word, masked if the option before it names a secret, as in [--password, x]."""
    option = str(before[-1]) if before else ""
    return MASK if option.startswith("-") and _is_named(option, str(value)) else value


def _path(above: str, key: object) -> str:
    return f"{above}.{key}" if above else str(key)


def _tells(key: str) -> bool:
    return bool(re.fullmatch(NAME, key, re.IGNORECASE) and TELLING.search(key))


def _is_named(path: str, value: str) -> bool:
    """Whether the last two keys of a path (`auth.token`), or one above them, name a secret."""
    keys = path.split(".")
    names = (".".join(keys[-2:]), *filter(_tells, keys[:-1]))  # credentials: {user: …, value: …}
    return any(re.fullmatch(NAME, n, re.IGNORECASE) and _is_secret(n, value) for n in names)


def found(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each setting that holds a secret, and its masked value.

    Args:
        values: settings, nested or flat: keys may be paths, joined by dots.
        above: the path of the values in the tree.
    """
    for key, value in values.items():
        path = _path(above, key)
        if isinstance(value, dict) and not _tells(str(key)):
            yield from found(value, path)
        elif (shown := masked(value, path)) != (list(value) if isinstance(value, tuple) else value):
            yield path, ", ".join(_differing(shown, value))


def _differing(shown: Any, value: Any) -> list[str]:
    if not isinstance(shown, list):
        return [MASK if isinstance(shown, dict) else shown]
    return [str(new) for new, old in zip(shown, value, strict=True) if new != old]
