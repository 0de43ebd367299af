#!/usr/bin/env bash
# get-redis.sh FOLDER: the distribution's redis-server, unpacked below FOLDER, for tests that run on Redis and Valkey.
# Nothing to do where PATH has one. Needs apt and a network, no root; nothing outside of FOLDER changes. Where that
# fails it says so in one line and ends well: those tests are then skipped, with the reason.
set -uo pipefail
# Its word counts: a redis-server may be a Valkey under its old name.
is_redis() { "$1" --version 2> /dev/null | grep -q '^Redis'; }
is_redis redis-server && exit 0
mkdir -p "$1" && cd "$1" && folder=$PWD || exit 0
is_redis ./redis-server && exit 0

SECONDS=0 LIMIT=150
apt=(-q -o Dir::Cache="$folder/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)"
    -o Acquire::Languages=none -o Acquire::Retries=1 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10)
own=(-o Dir::State::lists="$folder/lists")  # lists of our own, where the system's are missing or old
within() { timeout $((LIMIT > SECONDS ? LIMIT - SECONDS : 1)) "$@"; }

# redis-tools holds the program (redis-server only a link to it, and the service), beside it its missing libraries.
unpack() {
    local each missing=()
    for each in $(apt-cache "$@" depends redis-tools | sed -n 's/^ *Depends: \(lib[^ ]*\)$/\1/p'); do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$each" 2> /dev/null)" = installed ] || missing+=("$each")
    done
    rm -f ./*.deb
    within apt-get "$@" download redis-tools "${missing[@]}" || return
    for each in *.deb; do dpkg-deb -x "$each" root || return; done
    libraries=$(find "$folder/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
    ln -sf redis-check-rdb root/usr/bin/redis-server  # which one it is to be, it sees by its name
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$folder/root/usr/bin/redis-server" > redis-server
    chmod +x redis-server
    is_redis ./redis-server
}

get() {
    for each in apt-get apt-cache dpkg-deb dpkg-query timeout; do
        command -v $each || { echo "no $each here"; return 1; }
    done
    mkdir -p cache/archives/partial lists/partial
    unpack "${apt[@]}" && return
    within apt-get "${apt[@]}" "${own[@]}" update  # one source of several may fail
    unpack "${apt[@]}" "${own[@]}"
}

if get > log 2>&1; then
    echo "redis: $(./redis-server --version | grep -o 'v=[0-9.]*') in $1, for the tests, in $SECONDS s"
    rm -rf cache lists ./*.deb
else
    rm -f redis-server
    ((SECONDS < LIMIT)) && reason=$(tail -n 1 log) || reason="not within $LIMIT s"
    echo "redis: no redis-server on PATH and none to be had ($reason): tests on Redis itself are skipped"
fi
