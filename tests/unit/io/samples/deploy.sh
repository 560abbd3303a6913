#!/usr/bin/env bash
# Brings a service up — größer.
set -euo pipefail

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
declare -A PORTS=([io]=7301 [embed]=7302)
services=(io embed "indexer 🎉")

log() {
  local level="$1"
  shift
  printf '%s %s\n' "$level" "$*" >&2
}

# Waits until a port answers.
function wait_for() {
  local port=$1 tries=${2:-10}
  while ! nc -z localhost "$port" 2>/dev/null; do
    ((tries--)) || { log error "no answer on $port"; return 1; }
    sleep 0.1
  done
}

usage() {
  cat <<USAGE
usage: $0 [-v] command
  up    starts ${services[*]}
  down  stops them
USAGE
}

up() (
  cd "$ROOT"
  for service in "${!PORTS[@]}"; do
    case "$service" in
      io | embed)
        log info "starting $service"
        ./run "$service" --port "${PORTS[$service]}" &
        ;;
      *) log warn "unknown: $service" ;;
    esac
  done
  wait
)

down() {
  if [[ -f $ROOT/pids && -s $ROOT/pids ]]; then
    while read -r pid name; do
      kill "$pid" || log warn "$name was gone"
    done < "$ROOT/pids"
  elif (( $# > 0 )); then
    log info 'nothing to stop'
  fi
  rm -f -- "$ROOT"/*.pid
}

trap 'log info bye' EXIT

while getopts ":v" option; do
  case $option in
    v) set -x ;;
    *) usage; exit 2 ;;
  esac
done
shift $((OPTIND - 1))

"${1:-usage}" "${@:2}" | tee -a "$ROOT/log" | sed -e 's/^/> /'
