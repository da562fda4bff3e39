#!/usr/bin/env bash
# Lets a day pass on a disk that make-disk.sh made, in place: 64 MiB of new data, documents copied, a folder deleted,
# 4,000 random pages of the database written. In place, so that on XFS or Btrfs a kept clone shares all that stayed.
# usage: age-disk.sh IMAGE [DAY]    DAY (1 if left out) seeds what changes; needs root
set -euo pipefail
image=$1
day=${2:-1}
mount=$(mktemp -d)
trap 'mountpoint -q "$mount" && umount "$mount"; rmdir "$mount"' EXIT
mount -o loop "$image" "$mount"

mkdir "$mount/day$day"
# openssl is stopped by head, which is no failure.
{ openssl enc -aes-256-ctr -pass "pass:day$day" -nosalt -pbkdf2 </dev/zero 2>/dev/null || true; } |
    head -c 64M >"$mount/day$day/blob"
cp -a "$mount/usr/share/doc" "$mount/day$day/" 2>/dev/null || true
rm -rf "$mount/usr/include"
python3 - "$mount/db/table.dat" "$day" <<'PYTHON'
import os, random, sys

path, day = sys.argv[1:]
noise = random.Random(int(day))
pages = os.path.getsize(path) // 4096
with open(path, "r+b") as table:
    for _ in range(4000):
        table.seek(noise.randrange(pages) * 4096)
        table.write(noise.randbytes(2048).hex().encode())
PYTHON
sync -f "$mount"
umount "$mount"
