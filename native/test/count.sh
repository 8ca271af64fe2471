#!/bin/sh
# Instructions a packet on the device side, by path: `make count` (needs valgrind).
set -eu
program=$1
out=$(mktemp)
trap 'rm -f "$out"' EXIT
packets=100000
printf '%-10s %6s  %-22s %s\n' path bytes features 'instructions a packet'
for bytes in 64 1518; do
  for path in sink source echo; do
    for features in '' 'mergeable' 'mergeable event' 'mergeable log' 'mergeable packed' \
      'mergeable log packed'; do
      # shellcheck disable=SC2086
      valgrind --tool=callgrind --callgrind-out-file="$out" --toggle-collect='device_side*' \
        "$program" $path $bytes $packets $features >"$out.n" 2>"$out.log"
      count=$(sed -n 's/.*Collected *: *\([0-9]*\).*/\1/p' "$out.log")
      done_packets=$(cat "$out.n")
      printf '%-10s %6s  %-22s %s\n' "$path" "$bytes" "${features:-none}" "$(awk "BEGIN { printf \"%.1f\", $count / $done_packets }")"
      rm -f "$out.n" "$out.log"
    done
  done
done
