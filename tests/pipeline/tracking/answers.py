"""Answer the requests of W&B's client as its server does: one method per GraphQL operation."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

ENTITY = "recorder"


@dataclass
class Recorded:
    """The data of one run that the server received."""

    name: str
    project: str
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)  # rows of the history as JSON, by offset
    display: str | None = None
    group: str | None = None
    sweep: str | None = None
    tags: list = field(default_factory=list)
    exits: list = field(default_factory=list)
    preempting: int = 0
    used: list = field(default_factory=list)

    @property
    def history(self):
        """Return the rows of the history, in the order of their offsets."""
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]

    @property
    def steps(self):
        return [row["_step"] for row in self.history if "step" in row]

    @property
    def state(self):
        if not self.exits:
            return "running"
        if self.exits[-1]:
            return "preempted" if self.preempting else "failed"
        return "finished"


class Answers:
    """The state of a W&B server: runs, artifacts, reports and a sweep, with the operations on them."""

    def __init__(self):
        self.runs: dict[str, Recorded] = {}
        self.deleted: set[str] = set()  # names of deleted runs
        self.artifacts: dict[str, dict] = {}
        self.files: dict[str, int] = {}
        self.reports: list[dict] = []
        self.sweep = ""
        self.trials: list = []  # for an agent: the id of a run and its values

    def answer(self, operation, variables, base):
        """Return the data of a GraphQL operation, or None if it is not known."""
        known = getattr(self, f"_{operation}", None)
        return known and known(variables, base)

    def _Viewer(self, variables, base):
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        user = {"id": "VQ==", "entity": ENTITY, "username": ENTITY, "email": "r@x", "flags": "{}"}
        return {"viewer": user | {"teams": teams}}

    def _GetDefaultEntity(self, variables, base):
        return self._Viewer(variables, base)

    def _Runs(self, variables, base):
        """Return the runs that match the filter of a request by the public API."""
        asked = json.loads(variables["filters"])
        group, names = asked.get("group"), asked.get("display_name", {}).get("$in")
        found = [
            run for run in self.runs.values()
            if run.project == variables["project"] and run.group == (group or run.group)
            and (names is None or run.display in names)
        ]  # fmt: skip
        return {
            "project": {
                "internalId": "1", "runCount": len(found), "readOnly": False,
                "runs": {
                    "edges": [{"node": self._seen(run), "cursor": run.name} for run in found],
                    "pageInfo": {"endCursor": None, "hasNextPage": False},
                },
            }
        }  # fmt: skip

    def _ProjectInternalId(self, variables, base):
        return {"project": {"id": "P", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def _GetProjects(self, variables, base):
        page = {"endCursor": None, "hasNextPage": False}
        names = {run.project for run in self.runs.values()}
        known = {"id": "P", "entityName": ENTITY, "createdAt": "2026", "isBenchmark": False}
        nodes = [known | {"name": name, "user": None} for name in names]
        edges = [{"node": node, "cursor": node["name"]} for node in nodes]
        return {"models": {"pageInfo": page, "edges": edges}}

    def _upsertView(self, variables, base):
        self.reports.append(variables)
        project = {"id": "P", "name": variables["projectName"], "entityName": ENTITY}
        view = {k: variables[k] for k in ("type", "name", "displayName", "description", "spec")}
        more = {"id": "VmlldzoxMjM=", "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view | more, "inserted": True}}

    def _UpsertSweep(self, variables, base):
        self.sweep = variables["config"]
        project = {
            "id": "P",
            "name": variables["projectName"],
            "entity": {"id": "E", "name": ENTITY},
        }
        return {
            "upsertSweep": {
                "sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": [],
            }
        }  # fmt: skip

    def _SweepWithRuns(self, variables, base):
        sweep = {"id": "S", "name": "sweep1", "config": self.sweep, "runs": {"edges": []}}
        return {"project": {"sweep": sweep | {"state": "RUNNING"}}}

    def _GetSweepState(self, variables, base):
        return {"project": {"sweep": {"state": "RUNNING"}}}

    def _CreateAgent(self, variables, base):
        return {"createAgent": {"agent": {"id": "A"}}}

    def _Heartbeat(self, variables, base):
        """Return the command for an agent: its next trial, or exit."""
        if json.loads(variables["runState"]):
            commands = []
        elif self.trials:
            name, values = self.trials.pop(0)
            values = {key: {"value": value} for key, value in values.items()}
            commands = [{"type": "run", "run_id": name, "args": values, "program": "launch"}]
        else:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(commands)}}

    def _seen(self, run):
        """Return a run in the form that the public API gets."""
        return self._bucket(run) | {
            "projectId": "1", "state": run.state, "group": run.group, "tags": run.tags,
            "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}", "jobType": None,
            "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00", "notes": None,
            "heartbeatAt": "2026-01-01T00:00:00", "historyKeys": None,
            "user": {"name": ENTITY, "username": ENTITY},
        }  # fmt: skip

    def _ServerFeaturesQuery(self, variables, base):
        return {"serverInfo": {"features": []}}

    def _ServerInfo(self, variables, base):
        versions = {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None}
        return {"serverInfo": versions}

    def _OrganizationCoreWeaveOrganizationID(self, variables, base):
        return {"entity": {"organization": None}}

    def _ArtifactType(self, variables, base):
        return {"project": {"artifact": None}}

    def _RunResumeStatus(self, variables, base):
        run = self.runs.get(variables["name"])
        model = {"id": "M", "name": variables["project"], "entity": {"id": "E", "name": ENTITY}}
        if run is None:
            return {"model": model | {"bucket": None}}
        tail = [run.lines[max(run.lines)]] if run.lines else []
        return {
            "model": model | {
                "bucket": self._bucket(run) | {
                    "summaryMetrics": json.dumps(run.summary), "logLineCount": 0,
                    "historyLineCount": len(run.lines), "eventsLineCount": 0,
                    "historyTail": json.dumps(tail), "eventsTail": "[]",
                    "tags": run.tags, "notes": None, "wandbConfig": json.dumps({"t": 1}),
                }
            }
        }  # fmt: skip

    def _bucket(self, run):
        identity = base64.b64encode(f"Run:v1:{run.name}:{run.project}:{ENTITY}".encode()).decode()
        project = {"id": "P", "name": run.project, "entity": {"id": "E", "name": ENTITY}}
        return {
            "id": identity, "name": run.name, "displayName": run.display or run.name,
            "description": None, "config": json.dumps(run.config), "sweepName": None,
            "project": project, "historyLineCount": len(run.lines),
        }  # fmt: skip

    def _UpsertBucket(self, variables, base):
        name = variables.get("name") or _name(variables["id"])
        if name in self.deleted:
            raise ValueError(f"run {name} was previously created and deleted; try a new run name")
        new = name not in self.runs
        run = self.runs.setdefault(name, Recorded(name, variables.get("project") or ""))
        run.sweep = variables.get("sweep") or run.sweep
        if variables.get("config"):
            run.config.update(json.loads(variables["config"]))
        if variables.get("summaryMetrics"):
            run.summary.update(json.loads(variables["summaryMetrics"]))
        for theirs, ours in (("groupName", "group"), ("displayName", "display"), ("tags", "tags")):
            if variables.get(theirs) is not None:
                setattr(run, ours, variables[theirs])
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": new}}

    def _RunStoppedStatus(self, variables, base):
        return {"project": {"run": {"stopped": False}}}

    def _CreateRunFiles(self, variables, base):
        files = [
            {"name": name, "uploadUrl": f"{base}/storage/{variables['run']}/{name}"}
            for name in variables["files"]
        ]
        run = self._bucket(self.runs[variables["run"]])
        return {"createRunFiles": {"runID": run["id"], "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, variables, base):
        return {"markRunFilesUploaded": {"success": True}}

    def _CreateArtifact(self, variables, base):
        asked = variables["input"]
        name = asked.get("artifactCollectionName") or asked["artifactCollectionNames"][0]
        identity = base64.b64encode(f"Artifact:{name}:{asked['digest']}".encode()).decode()
        made = self.artifacts.setdefault(
            identity,
            {"name": name, "type": asked.get("artifactTypeName"), "run": asked.get("runName"),
             "client": asked.get("clientID"), "state": "PENDING", "digest": asked["digest"]},
        )  # fmt: skip
        shown = {"id": identity, "state": made["state"]}
        return {
            "createArtifact": {"artifact": shown | {"artifactSequence": {"latestArtifact": None}}}
        }

    def _CreateArtifactManifest(self, variables, base):
        url = f"{base}/storage/manifest/{variables['artifactID']}/{variables['name']}"
        file = {"id": "F", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _UpdateArtifactManifest(self, variables, base):
        file = {"id": "F", "uploadUrl": f"{base}/storage/manifest/again", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _CreateArtifactFiles(self, variables, base):
        nodes = [
            {"storagePath": f"a/{file['name']}", "uploadUrl": f"{base}/storage/a/{file['name']}",
             "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            for file in variables["input"]["artifactFiles"]
        ]  # fmt: skip
        edges = [{"node": node} for node in nodes]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, variables, base):
        made = self.artifacts[variables["artifactID"]]
        made["state"] = "COMMITTED"
        identity = {"id": variables["artifactID"], "digest": made["digest"]}
        return {"commitArtifact": {"artifact": identity}}

    def _ArtifactByID(self, variables, base):
        made = self.artifacts[variables["id"]]
        project = {"id": "P", "internalId": "P", "name": "dyrep", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": made["name"], "project": project}
        return {
            "artifact": {
                "__typename": "Artifact", "id": variables["id"], "artifactSequence": sequence,
                "versionIndex": 0, "artifactType": {"name": made["type"]}, "description": None,
                "metadata": "{}", "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [],
                "historyStep": None, "state": made["state"], "size": 1, "digest": made["digest"],
                "digestAlgorithm": "MANIFEST_MD5", "commitHash": "c", "fileCount": 1,
                "createdAt": "2026-01-01T00:00:00", "updatedAt": None, "aliases": [],
            }
        }  # fmt: skip

    def _UseArtifact(self, variables, base):
        asked = variables["input"]
        self.runs[asked["runName"]].used.append(self.artifacts[asked["artifactID"]]["name"])
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    def _ClientIDMapping(self, variables, base):
        found = [i for i, a in self.artifacts.items() if a["client"] == variables.get("clientID")]
        return {"clientIDMapping": {"serverID": found[0]} if found else None}

    def stream(self, name, project, message):
        """Store the rows, the summary and the exit code that a client streams for a run."""
        run = self.runs.setdefault(name, Recorded(name, project))
        for file, chunk in (message.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for place, line in enumerate(chunk["content"]):
                    run.lines[chunk["offset"] + place] = line
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        run.preempting += bool(message.get("preempting"))
        if message.get("complete"):
            run.exits.append(message.get("exitcode"))


def _name(identity):
    return base64.b64decode(identity).decode().split(":")[2]
