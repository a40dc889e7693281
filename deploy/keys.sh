#!/usr/bin/env bash
# Make the keys that compose.yaml reads, unless they are there: of the page's users, of Prometheus, and Grafana's password.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
if [[ -e secrets/api_keys ]]; then
    echo "deploy/secrets has keys already" >&2
    exit 0
fi
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
user=$(new) metrics=$(new)
printf '%s' "$metrics" > secrets/metrics_key
printf '%s' "$(new)" > secrets/grafana_password
printf 'user=%s\nprometheus=%s\n' "$user" "$metrics" > secrets/api_keys
chmod 644 secrets/*  # the containers' users read them; the folder is yours alone
chmod 700 secrets
echo "the page's key: $user"
