"""Prints a shared access signature of a container of the Azure emulator. Standard library only.

usage: azure_sas.py CONTAINER PERMISSIONS        (rl: read and list; c: create; w: write; d: delete)
"""
import base64, hashlib, hmac, sys, urllib.parse

container, permissions = sys.argv[1:3]
# The account and key that every Azure emulator has; they are printed in its manual and open nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION, EXPIRES = "2021-08-06", "2099-01-01T00:00:00Z"

# https://learn.microsoft.com/rest/api/storageservices/create-service-sas, version 2020-12-06 and later: permissions, start,
# expiry, resource, identifier, addresses, protocol, version, kind, snapshot, encryption scope, and five response headers.
fields = [permissions, "", EXPIRES, f"/blob/{ACCOUNT}/{container}", "", "", "", VERSION, "c", "", "", "", "", "", "", ""]
digest = hmac.new(base64.b64decode(KEY), "\n".join(fields).encode(), hashlib.sha256).digest()
token = {"sv": VERSION, "sr": "c", "sp": permissions, "se": EXPIRES, "sig": base64.b64encode(digest).decode()}
print(urllib.parse.urlencode(token))
