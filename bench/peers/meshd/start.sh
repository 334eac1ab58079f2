#!/bin/bash
# Two meshd agents for the side-by-side measurement: host-a takes the load, host-b stands before the backend.
# Certificates come from the throwaway CA: P-256 leafs and TLS 1.3, as the other peers have.
# MESHD names the binary; default: bin/meshd of this tree (make build).
. "$LAB/tools/lib.sh"
MESHD=${MESHD:-$HERE/../../../bin/meshd}
[ -x "$MESHD" ] || { echo "no $MESHD: run make build" >&2; exit 1; }
rm -rf "$RUN/ca" "$RUN/data-a" "$RUN/data-b"
for s in b a; do
  f=$(render "$HERE/$s.hcl.in")
  spawn PID $s "$MESHD" --config "$f"
  if [ $s = b ]; then wait_port "$B"; fi
done
wait_port "$A" "$A_RAW"
echo "PORT=$A"; echo "RAW_PORT=$A_RAW"
