#!/bin/sh
# NAME.sh: (which application this brings to rest)
#
# Called with one argument: `pre` before the snapshot, `post` right after it, whenever `pre` was started. Exit 0: done;
# 75: try again; anything else: failed. COFFRE_MACHINE, COFFRE_JOB and, in post, COFFRE_OUTCOME say more.
set -eu

case "$1" in
    pre)
        # Bring the application to rest here.
        ;;
    post)
        # Let it go here; pre may have failed half-way, so do not assume that it did its work.
        ;;
esac
