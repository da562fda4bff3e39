#!/usr/bin/env bash
# The benchmark's disk: 8 GiB, sparse, ext4 with up to 3 GiB of this machine's own /usr, half a GiB that does not
# compress and half a GiB of database-like text; and the same disk a day later.
# usage: make-disk.sh FOLDER    makes FOLDER/day0.img and FOLDER/day1.img; needs root and about 10 GiB
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
mount=$(mktemp -d)
trap 'mountpoint -q "$mount" && umount "$mount"; rmdir "$mount"' EXIT
# The same noise everywhere. openssl is stopped by head, which is no failure.
noise() { openssl enc -aes-256-ctr -pass "pass:$1" -nosalt -pbkdf2 </dev/zero 2>/dev/null || true; }

rm -f "$out/day0.img" "$out/day1.img" "$out/day0.new" "$out/day1.new"
truncate -s 8G "$out/day0.new"
id=11111111-2222-3333-4444-555555555555
mkfs.ext4 -q -E "lazy_itable_init=0,lazy_journal_init=0,hash_seed=$id" -U "$id" "$out/day0.new"
mount -o loop "$out/day0.new" "$mount"
mkdir "$mount/usr" "$mount/blob" "$mount/db"
# tar ends early, by head's doing.
{ tar -C /usr -cf - lib share bin include 2>/dev/null || true; } | head -c 3G |
    { tar -C "$mount/usr" -xf - 2>/dev/null || true; }
noise seed | head -c 512M >"$mount/blob/random.bin"
{ noise db | head -c 256M | od -An -tx1 -v || true; } | head -c 512M >"$mount/db/table.dat"
sync -f "$mount"
umount "$mount"

cp --sparse=always "$out/day0.new" "$out/day1.new"
"$here/age-disk.sh" "$out/day1.new"
# In place only when whole.
mv "$out/day0.new" "$out/day0.img"
mv "$out/day1.new" "$out/day1.img"
