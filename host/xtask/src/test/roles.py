"""An S3 server that enforces policies, with one user for each role of docs/permissions.

usage: roles.py PORT POLICIES-FOLDER BUCKET KEYS-FILE

Starts moto, makes BUCKET and BUCKET-locked (Object Lock, 30 days, compliance), and a user for every s3-ROLE.json in the folder,
writes their keys into KEYS-FILE as {"ROLE": {"id": …, "secret": …}}, and from then on enforces. Moto looks at actions and
resources, not at conditions. Two of its ways are not Amazon's and are set right here:
- it computes another signature where a query has a slash in it, as every listing below a prefix has; signatures are not
  checked here at all (nothing about roles rests on them);
- into a locked bucket it takes no put with `x-amz-checksum-…` alone. Amazon asks for "Content-MD5 OR x-amz-checksum-".
"""
import json, os, pathlib, sys, threading

port, policies, bucket, keys_file = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]

import boto3
from moto import settings
from moto.iam import access_control
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

access_control.IAMRequestBase.check_signature = lambda self: None
set_up = S3Response.setup_class


def set_up_with_checksum(self, request, *arguments, **named):
    if request.headers.get("x-amz-checksum-sha256"):
        request.environ["HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM"] = "SHA256"
    set_up(self, request, *arguments, **named)


S3Response.setup_class = set_up_with_checksum

server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
server.start()
here = dict(
    endpoint_url=f"http://127.0.0.1:{port}",
    region_name="us-east-1",
    aws_access_key_id="maker",
    aws_secret_access_key="maker",
)
s3, iam = boto3.client("s3", **here), boto3.client("iam", **here)
s3.create_bucket(Bucket=bucket)
s3.create_bucket(Bucket=f"{bucket}-locked", ObjectLockEnabledForBucket=True)
rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}
lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
s3.put_object_lock_configuration(Bucket=f"{bucket}-locked", ObjectLockConfiguration=lock)

keys = {}
for path in sorted(policies.glob("s3-*.json")):
    role = path.stem.removeprefix("s3-")
    # Every test has a prefix of its own, in either bucket.
    policy = path.read_text().replace("BUCKET", f"{bucket}*").replace("PREFIX", "*")
    json.loads(policy)
    iam.create_user(UserName=role)
    iam.put_user_policy(UserName=role, PolicyName=role, PolicyDocument=policy)
    key = iam.create_access_key(UserName=role)["AccessKey"]
    keys[role] = {"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
pathlib.Path(f"{keys_file}.new").write_text(json.dumps(keys))
os.replace(f"{keys_file}.new", keys_file)
threading.Event().wait()
