#!/bin/sh
# A federation of separate processes on this machine, with TLS and a key for each client.
#
#   examples/lan/demo.sh digits   insight exchange on shares of the digits, three clients
#   examples/lan/demo.sh sites    federated averaging over two sites' own tables
#
# Everything is written below runs/lan-demo. PYTHON names another Python than `python`.
set -eu
kind=${1:-digits}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=runs/lan-demo/$kind
port=${PORT:-8000}
mkdir -p "$work"

case $kind in
digits)
    clients="0 1 2"
    set -- +experiment=insight rounds=10 runtime.min_clients=3 ;;
sites)
    clients="0 1"
    set -- data=table \
        'data.features=[mean_radius,mean_texture,mean_smoothness,mean_concavity,mean_symmetry]' \
        data.target=diagnosis data.task=classification 'data.classes=[malignant,benign]' \
        model=linear strategy=fedavg partition=iid rounds=10 runtime.min_clients=2 ;;
*)
    echo "demo.sh: $kind: must be digits or sites" >&2
    exit 2 ;;
esac

"$python" -m fedmoe.keys "$work/keys" --clients "$(echo "$clients" | wc -w | tr -d ' ')"
started=""
trap 'kill $started 2>/dev/null || true' EXIT
for number in $clients; do
    data=""
    if [ "$kind" = sites ]; then data="client.data=$here/site$number.csv"; fi
    # A client that is not there yet when the server starts is waited for, and the other way round.
    "$python" -m fedmoe.client "runtime.server=127.0.0.1:$port" "client.partition=$number" \
        "client.keys=$work/keys" "client.state=$work/state$number" $data \
        >"$work/client$number.log" 2>&1 &
    started="$started $!"
done
"$python" -m fedmoe.server "runtime.port=$port" "runtime.keys=$work/keys" "$@"
wait $started
trap - EXIT
echo "clients ended; their logs: $work/client*.log"
