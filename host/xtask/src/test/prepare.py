"""Waits until a test server answers and makes its bucket or container. Standard library only.

usage: prepare.py s3|s3-tls|s3-overwriting|azure URL BUCKET CA-FILE LIMIT-SECONDS
"""
import base64, datetime, hashlib, hmac, ssl, sys, time, urllib.error, urllib.request

kind, url, bucket, ca_file, limit_s = sys.argv[1:6]
# The account and key that every Azure emulator has; they are printed in its manual and open nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def request():
    if kind != "azure":
        return urllib.request.Request(f"{url}/{bucket}", method="PUT")
    version = "2021-08-06"
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    resource = f"/{ACCOUNT}/{ACCOUNT}/{bucket}\nrestype:container"
    to_sign = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    return urllib.request.Request(f"{url}/{ACCOUNT}/{bucket}?restype=container", method="PUT", headers=headers)


handlers = [urllib.request.ProxyHandler({})]
if url.startswith("https"):
    handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
opener = urllib.request.build_opener(*handlers)
deadline = time.monotonic() + float(limit_s)
while True:
    try:
        opener.open(request(), timeout=10)
        break
    except urllib.error.HTTPError as error:
        # It is there already, or its server has made it itself and only has to answer.
        if error.code == 409 or kind == "s3-overwriting":
            break
        sys.exit(f"{url} answers {error.code}: {error.read()[:300]!r}")
    except OSError as error:
        if time.monotonic() > deadline:
            sys.exit(f"{url}: {error}")
        time.sleep(0.1)
