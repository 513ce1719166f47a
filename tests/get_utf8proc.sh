#!/bin/sh
# get_utf8proc.sh DIR   puts utf8proc.c, utf8proc.h and utf8proc_data.c of Debian's source package into DIR, for
#                       amalgamate.py --bundle. Needs apt-get and a network; touches nothing outside DIR.
set -eu
apt=$1/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
apt=$(cd "$apt" && pwd)
cd "$apt"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main" \
    >sources.list
get() {
    apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::SourceList="$apt/sources.list" \
        -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" "$@"
}
get update
get source --download-only utf8proc
tar -xzf utf8proc_*.orig.tar.gz --strip-components=1 -C .. --wildcards \
    '*/utf8proc.c' '*/utf8proc.h' '*/utf8proc_data.c'
rm -r "$apt"
