# One call of a hook inside a machine, run by its /bin/sh; what is asked for stands above. It looks at the program as is done
# on the host, runs it with a fixed environment until it ends, its time is over or nobody waits any more, ends what it left
# behind, and then says all that came of it, each line marked. Needs what every system has: coreutils or busybox, grep, awk.

say() { printf '%s %s\n' "$run" "$*"; }
packed() { base64 | tr -d '\n'; }
refuse() { say refused "$1" "$(printf %s "$2" | packed)"; exit 0; }

# Nobody but root and the user who runs this may write a step of the way to the program; a sticky folder of root's may be
# written by others, who cannot replace what is not theirs.
step() {
    about=$(stat -c '%u %a' "$1" 2> /dev/null) || refuse invalid "cannot read $1: there is no such file"
    owner=${about% *} mode=${about#* }
    [ "$owner" = 0 ] || [ "$owner" = "$me" ] ||
        refuse invalid "$1 belongs to user $owner, who is neither root nor the user that runs this"
    [ ! -L "$1" ] || return 0
    case $mode in
    *[2367] | *[2367]?)
        case $mode in 1??? | 3??? | 5??? | 7???) [ "$owner" = 0 ] && [ -d "$1" ] && return 0 ;; esac
        refuse invalid "$1 can be written by others than its owner (mode $mode)"
        ;;
    esac
}
look() {
    rest=${1#/} at=/ links=0
    step /
    while [ -n "$rest" ]; do
        name=${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
        case $name in '' | .) continue ;; ..) at=${at%/*} at=${at:-/}; continue ;; esac
        next=${at%/}/$name
        step "$next"
        if [ -L "$next" ]; then
            links=$((links + 1))
            [ "$links" -le 40 ] || refuse invalid "$1 is a link that leads nowhere"
            to=$(readlink "$next") rest=$to${rest:+/$rest}
            case $to in /*) at=/ ;; esac
        else
            at=$next
        fi
    done
    [ -f "$at" ] || refuse invalid "$at is not a file"
    [ -x "$at" ] || refuse invalid "$at cannot be executed"
}

# A folder that nobody else can look into, in memory where there is such a place.
make_folder() {
    for place in /run /dev/shm /tmp; do
        folder=$(mktemp -d "$place/coffre-hook-XXXXXXXX" 2> /dev/null) || continue
        case $(stat -f -c %T "$folder") in tmpfs | ramfs) in_memory=yes ;; esac
        [ -z "$in_memory" ] && [ "$place" != /tmp ] || break
        rmdir "$folder"
        folder=
    done
    [ -n "$folder" ] || refuse failed 'the folder for what the hook is told cannot be made'
    [ -n "$in_memory" ] || [ "$has_secrets" = no ] ||
        refuse failed 'there is no file system in memory for the secrets that the hook is granted'
}

# Keeps the beginning of an output and counts the rest, so that nobody blocks on it.
keep() {
    mkfifo "$folder/$1.pipe"
    { head -c "$keep_bytes" > "$folder/$1"; wc -c > "$folder/$1.more"; } < "$folder/$1.pipe" &
}

# The processes of the run: what carries its mark, and all below that and below the program.
tree() {
    {
        echo "child $root $$"
        grep -lF "COFFRE_RUN=$run" /proc/[0-9]*/environ 2> /dev/null | sed 's,^/proc/,root ,; s,/environ$,,'
        cat /proc/[0-9]*/stat 2> /dev/null
    } | awk '
        $1 == "root" { of[$2] = 1; next }
        $1 == "child" { child = $2; main = $3; next }
        { pid = $1; sub(/^.*\) /, ""); if ($1 != "Z" && $1 != "X") above[pid] = $2 }
        END {
            if (child in above && above[child] == main) of[child] = 1
            do { more = 0; for (pid in above) if (!(pid in of) && above[pid] in of) { of[pid] = 1; more = 1 } } while (more)
            for (pid in of) if (pid in above) print pid
        }' | sort
}
end_tree() {
    before= tries=0
    while left=$(tree) && [ -n "$left" ] && [ "$tries" -lt 300 ]; do
        # Stopped until no new one appears, so that none escapes by having children.
        if [ "$left" = "$before" ]; then kill -KILL $left; else kill -STOP $left; fi 2> /dev/null
        before=$left tries=$((tries + 1))
        [ "$tries" -lt 5 ] || sleep "$short"
    done
}

# Tells the shell that waits until it has heard it, since it may not be waiting yet; and no stranger with its number.
began() { cut -d ' ' -f 22 "/proc/$$/stat" 2> /dev/null; }
too_late() { while [ "$(began)" = "$beginning" ] && kill -USR1 $$; do sleep 1; done; }
timer() {
    trap 'kill "$asleep" 2> /dev/null; exit' TERM
    sleep "$1" &
    asleep=$!
    wait "$asleep"
    too_late
}
# The near side keeps our input open for as long as it waits.
nobody_waits() {
    trap 'kill "$reads" 2> /dev/null; exit' TERM
    cat <&3 > /dev/null &
    reads=$!
    wait "$reads"
    too_late
}

# The shell reads all of this from its standard input before it begins, since that becomes another one.
main() {
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
    export PATH LC_ALL
    say here
    umask 077
    me=$(id -u)
    [ -n "$HOME" ] || HOME=$(getent passwd "$me" | cut -d : -f 6)
    HOME=${HOME:-/}
    cd /
    look "$program"
    [ "$phase" != check ] || { say fine; exit 0; }
    folder= in_memory=
    make_folder
    trap 'rm -rf "$folder"' EXIT
    printf %s "$context" | base64 -d > "$folder/context.json"
    printf %s "$memory" | base64 -d > "$folder/memory"
    [ "$phase" != post ] || mkdir "$folder/attachments"
    [ "$has_secrets" = no ] || { mkdir "$folder/secrets" && lay_secrets; }

    exec 3<&0 < /dev/null
    short=0.01
    sleep "$short" 2> /dev/null || short=1 seconds=$whole_seconds
    keep stdout && keeps_stdout=$!
    keep stderr && keeps_stderr=$!
    late=no beginning=$(began)
    trap 'late=yes' USR1 HUP TERM
    session=$(command -v setsid) || session=
    say started
    (call "$@") > "$folder/stdout.pipe" 2> "$folder/stderr.pipe" 3<&- &
    root=$!
    (timer "$seconds") > /dev/null 2>&1 3<&- &
    watches=$!
    [ "$watch_input" = no ] || { (nobody_waits) > /dev/null 2>&1 & watches="$watches $!"; }
    wait "$root"
    status=$?
    was_late=$late
    # Where nobody hears the report any more, the folder must go all the same.
    trap '' USR1 HUP TERM PIPE
    end_tree
    kill $watches 2> /dev/null
    if [ -z "$left" ]; then wait "$root"; else kill "$keeps_stdout" "$keeps_stderr"; fi 2> /dev/null
    wait "$keeps_stdout" "$keeps_stderr" 2> /dev/null

    say status "$status"
    say late "$was_late"
    [ -z "$left" ] || say left $left
    for output in stdout stderr; do
        say "$output" "$(($(cat "$folder/$output.more") + 0))" "$(packed < "$folder/$output")"
    done
    if [ -f "$folder/memory" ] && [ ! -L "$folder/memory" ]; then
        say memory "$(head -c "$((memory_bytes + 1))" "$folder/memory" | packed)"
    elif [ -e "$folder/memory" ] || [ -L "$folder/memory" ]; then
        say odd "$(printf '$COFFRE_MEMORY: it is not a file' | packed)"
    fi
    count=0
    for file in "$folder"/attachments/* "$folder"/attachments/.[!.]*; do
        [ -e "$file" ] || [ -L "$file" ] || continue
        count=$((count + 1))
        [ "$count" -le "$((attachments + 1))" ] || break
        name=$(printf %s "${file##*/}" | packed)
        if [ -f "$file" ] && [ ! -L "$file" ]; then
            say attached "$name" "$(head -c "$((attachment_bytes + 1))" "$file" | packed)"
        else
            say odd "$(printf '$COFFRE_ATTACHMENTS: %s: it is not a file' "${file##*/}" | packed)"
        fi
    done
    say end
}
main "$@"
