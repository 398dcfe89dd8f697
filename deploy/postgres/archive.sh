#!/bin/sh
# PostgreSQL's archive_command: `archive.sh %p /archive/%f` copies a complete segment of the write-ahead log to the archive,
# atomically. If the segment exists with the same content, it was archived before a crash, and the script succeeds. If the content
# differs, another server uses this archive, and the script fails.
set -eu
segment=$1 archived=$2
if [ -e "$archived" ]; then
    exec cmp "$segment" "$archived"
fi
cp "$segment" "$archived.part"
sync "$archived.part"
mv "$archived.part" "$archived"
sync "$(dirname "$archived")"
