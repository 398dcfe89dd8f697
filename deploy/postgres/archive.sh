#!/bin/sh
# PostgreSQL's archive_command: `archive.sh %p /archive/%f` copies a finished segment of the write-ahead log to the archive.
# The segment appears there whole or not at all. One that is there already is not written again: identical, it was archived
# before a crash; different, another server archives to this place, which is an error that must be seen.
set -eu
segment=$1 archived=$2
if [ -e "$archived" ]; then
    exec cmp "$segment" "$archived"
fi
cp "$segment" "$archived.part"
sync "$archived.part"
mv "$archived.part" "$archived"
sync "$(dirname "$archived")"
