#!/usr/bin/env bash
# A launch over two machines, shown on one: two network namespaces joined by a cable of their own, one process in each.
#
#     sudo benchmarks/two_nodes.sh [ddp|zero2|zero3|fsdp2] [RECIPE]
#
# Needs root (`ip netns`), iproute2 and the set-up environment. The namespaces see each other and nothing else: what
# trains here goes over that cable. All of it is removed at the end, however that comes. The last line is JSON.
set -euo pipefail

strategy=${1:-ddp}
root=$(cd "$(dirname "$0")/.." && pwd)
recipe=$(realpath "${2:-$root/tests/recipes/two_nodes.yaml}")
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3

if [ "$(id -u)" != 0 ]; then
    echo "two_nodes.sh: needs root, to make network namespaces; run it with sudo" >&2
    exit 1
fi
command -v ip >/dev/null || { echo "two_nodes.sh: needs \`ip\` (package iproute2)" >&2; exit 1; }

id=ptn$$ # names of this run alone: several may run side by side
work=$(mktemp -d)
pids=()

clean_up() {
    local status=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for node in 0 1; do
        # What a killed command left in its namespace, if anything.
        ip netns pids "$id-$node" 2>/dev/null | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
        ip netns delete "$id-$node" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The cable's ends are made inside the namespaces: the machine's own network is not touched.
ip netns add "$id-0"
ip netns add "$id-1"
ip -netns "$id-0" link add cable0 type veth peer name cable1 netns "$id-1"
for node in 0 1; do
    ip -netns "$id-$node" address add "10.77.0.$((node + 1))/30" dev "cable$node"
    ip -netns "$id-$node" link set "cable$node" up
    ip -netns "$id-$node" link set lo up
done

node() { # RANK
    # gloo is told its interface: by default it looks up the host's name, which leads nowhere here.
    exec ip netns exec "$id-$1" env POSTTRAIN_MACHINE_RANK="$1" GLOO_SOCKET_IFNAME="cable$1" HF_HUB_OFFLINE=1 \
        OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive "$python" -m posttrain run "$recipe" --output "$work/run" --quiet \
        --set engine.launcher=accelerate --set engine.machines=2 --set engine.processes=2 --set engine.cpu=true \
        --set engine.main_address=10.77.0.1 --set "engine.strategy=$strategy"
}

cd "$root"
began=$(date +%s)
for rank in 0 1; do
    node "$rank" >"$work/node$rank.log" 2>&1 &
    pids+=($!)
done
failed=0
for rank in 0 1; do
    wait "${pids[$rank]}" || { failed=1; echo "node $rank failed:" >&2; tail -n 40 "$work/node$rank.log" >&2; }
done
[ "$failed" = 0 ] || exit 1

bytes=$(ip netns exec "$id-1" cat /sys/class/net/cable1/statistics/rx_bytes /sys/class/net/cable1/statistics/tx_bytes |
    paste -sd+ | { read -r sum; echo $((sum)); })
"$python" - "$work/run" "$strategy" "$bytes" "$(($(date +%s) - began))" <<'PYTHON'
import json, sys
from pathlib import Path

run, strategy, sent, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
losses = {}
for stage in sorted((run / "stages").iterdir(), key=lambda path: (path / "stage.json").stat().st_mtime):
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    figures = [row["loss"] for row in rows if "loss" in row]
    losses[stage.name] = [figures[0], figures[-1]]
    print(f"{stage.name}: loss {figures[0]:.4f} -> {figures[-1]:.4f} in {rows[-1]['step']} steps")
size = sum(path.stat().st_size for path in run.glob("stages/*/model/model.safetensors"))
print(json.dumps({"benchmark": "two_nodes", "strategy": strategy, "nodes": 2, "processes": 2, "losses": losses,
                  "bytes_between_nodes": sent, "model_bytes": size, "seconds": seconds}))
PYTHON
