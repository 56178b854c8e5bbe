#!/usr/bin/env bash
# argilla 2.8.0: what it exports does not say which answers are drafts, or were discarded.
#
# A response of Argilla has a status: "draft" (begun and not handed in), "submitted", "discarded". `Record.to_dict`, of
# which `records.to_list()` and `records.to_json()` are made, writes value and user of every response and leaves the
# status out; `Record.from_dict` then reads each as having none. Whoever takes an exported file for labels counts drafts
# and discarded answers as judgements. (The record's own "status" says whether enough answers are in, not which.)
#
# Also: `import argilla` needs requests, which version 2.8.0 does not declare.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check argilla==2.8.0 requests==2.34.2 2>/dev/null
"$place/venv/bin/python" - <<'PYTHON'
import sys
import uuid

import argilla as rg

print("Python", sys.version.split()[0], "argilla", rg.__version__)
user = uuid.UUID(int=1)


def exported(status):
    response = rg.Response("preferred", "response_a", user_id=user, status=status)
    assert response.status.value == status, "the object itself knows"
    record = rg.Record(id="1", fields={"prompt": "p"}, responses=[response])
    return record.to_dict()["responses"], rg.Record.from_dict(record.to_dict())


told = {}
for status in ("submitted", "draft", "discarded"):
    told[status], back = exported(status)
    print(f"{status:9} exported as {told[status]}, read back with status {back.responses['preferred'][0].status}")
same = told["submitted"] == told["draft"] == told["discarded"]
print("The three exports are", "the same: nothing says which answer counts" if same else "told apart")
sys.exit(0 if same else 1)
PYTHON
