# tests/vswitchd/common.sh: what the scenarios with ovs-vswitchd share: hosts, programs, checks. Sourced by them.
#
# Two hosts, each a network namespace with a real stack, on veth devices that a third namespace switches. Every namespace, process
# and file is this run's own.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tree=$PWD target=${CARGO_TARGET_DIR:-$PWD/target}
# With VSWITCHD_BUILT set, the programs are those that are there.
[ -n "${VSWITCHD_BUILT:-}" ] || cargo build --release --quiet -p flowlift -p flowlift-preload
flowlift=$target/release/flowlift
SECONDS_IPERF=${VSWITCHD_SECONDS:-4}

work=$(mktemp -d)
sw=vs$$-sw a=vs$$-a b=vs$$-b
export FLOWLIFT_RUNDIR=$work OVS_RUNDIR=$work OVS_LOGDIR=$work OVS_DBDIR=$work FLOWLIFT_LOG=info
passed=0 failed=0
# A command that ends the script says so as a check that failed does: tests/run shows those lines first.
set -E
trap 'stopped $? "${BASH_SOURCE[0]##*/}" $LINENO "$BASH_COMMAND" >&2' ERR
stopped() { # EXIT-CODE FILE LINE COMMAND
    # What fails in a subshell ends that one alone.
    [ "$BASH_SUBSHELL" -eq 0 ] || return 0
    echo "FAILED  $2, line $3, ends with exit code $1: $4"
    logs
}

check() { # WHAT COMMAND...: the command succeeds
    local what=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        sed 's/^/        /' "$work/out" | tail -n 20
        logs
    fi
}
logs() { # what the programs said last
    local log
    for log in "$work"/daemon.log "$work"/vswitchd.log; do
        [ ! -s "$log" ] || { echo "        ${log##*/}:" && tail -n 8 "$log" | sed 's/^/          /'; }
    done
}
say() { echo "        $*"; }
kill_one() { # NAME [SIGNAL]: ends the process of this name and waits for its end
    local file=$work/$1.pid
    [ -f "$file" ] || return 0
    local pid
    pid=$(cat "$file")
    kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    for _ in $(seq 600); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
}
down() {
    for name in server vswitchd ovsdb daemon; do kill_one $name; done
    for ns in $sw $a $b; do ip netns del "$ns" 2>/dev/null || true; done
    rm -f "$work"/*.json "$work"/*.db
}
trap 'down; rm -rf "$work"' EXIT

in_sw() { ip netns exec "$sw" "$@"; }
in_a() { ip netns exec "$a" "$@"; }
in_b() { ip netns exec "$b" "$@"; }
vsctl() { in_sw ovs-vsctl --db="unix:$work/db.sock" --timeout=60 "$@"; }
wait_for() { # COMMAND...: until it succeeds, at most a minute
    local end=$((SECONDS + 60))
    until "$@" >"$work/waited" 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "tests/vswitchd: waited in vain for: $*" >&2
            tail -n 10 "$work/waited" >&2
            return 1
        fi
        sleep 0.1
    done
}
long_neighbours() { # NAMESPACE: a neighbour once known is not asked again after half a minute: without ovs-vswitchd, ARP may have no flow
    ip netns exec "$1" sh -c 'echo 3600000 >/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms'
}
quick_ping() { "$1" ping -c 1 -W 1 "$2"; } # FROM TO
pings() { # FROM TO [ARGUMENT...]: answered, and so are some more with these arguments
    wait_for quick_ping "$1" "$2" && "$1" ping -c 5 -i 0.2 -W 2 "${@:3}" "$2"
}
fails() { ! "$@"; }
hosts() {
    ip netns add "$sw" && ip netns add "$a" && ip netns add "$b"
    ip -n "$sw" link set lo up
    local n=1
    for ns in $a $b; do
        ip -n "$sw" link add "v$n" type veth peer name eth0 netns "$ns"
        ip -n "$sw" link set "v$n" up
        ip -n "$ns" link set lo up
        ip -n "$ns" link set eth0 address "02:00:00:00:00:0$n" up
        ip -n "$ns" addr add "10.1.0.$n/24" dev eth0
        long_neighbours "$ns"
        n=$((n + 1))
    done
}
start_daemon() {
    # Not by way of the function above: the process in the background must be the daemon itself.
    ip netns exec "$sw" "$flowlift" daemon "$@" >>"$work/daemon.log" 2>&1 &
    echo $! >"$work/daemon.pid"
    # When it is killed, the shell need not tell.
    disown $!
    wait_for "$flowlift" status
}
start_vswitchd() { # [COMMAND...]: under this command
    in_sw "$@" ovs-vswitchd "unix:$work/db.sock" --pidfile="$work/vswitchd.pid" --log-file="$work/vswitchd.log" \
        --detach >>"$work/start.log" 2>&1
}
start_ovsdb() {
    ovsdb-tool create "$work/conf.db" /usr/share/openvswitch/vswitch.ovsschema
    in_sw ovsdb-server "$work/conf.db" --remote="punix:$work/db.sock" --pidfile="$work/ovsdb.pid" \
        --log-file="$work/ovsdb.log" --detach >>"$work/start.log" 2>&1
    vsctl --no-wait init
}
bridge() { # TYPE [PORT PORT]
    vsctl add-br br0 -- set bridge br0 datapath_type="$1"
    vsctl add-port br0 "${2:-v1}" -- add-port br0 "${3:-v2}"
}
plug() { # DEVICE NAMESPACE ADDRESS: the TAP device at the end of a wire becomes a host's eth0
    wait_for in_sw ip link show "$1"
    in_sw ip link set "$1" netns "$2"
    ip -n "$2" link set "$1" name eth0
    ip -n "$2" link set eth0 address "02:00:00:00:00:0$3" up
    ip -n "$2" addr add "10.1.0.$3/24" dev eth0
    long_neighbours "$2"
}
json() { # KEY: a number of `flowlift status --json`, as python sees it as `s`
    "$flowlift" status --json | python3 -c "import json,sys; s=json.load(sys.stdin); print($1)"
}
listens() { "$1" ss --no-header --listening --numeric "--$2" "sport = :$3" | grep "$3"; } # HOST tcp|udp PORT
iperf() { # prints Gbit/s
    in_b iperf3 --server --one-off --daemon --pidfile "$work/server.pid" >/dev/null
    wait_for listens in_b tcp 5201
    in_a iperf3 --client 10.1.0.2 --time "$SECONDS_IPERF" --json >"$work/iperf" || { cat "$work/iperf" >&2; return 1; }
    python3 -c 'import json,sys; print("%.2f" % (json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"] / 1e9))' <"$work/iperf"
    rm -f "$work/server.pid"
}
web() { # 8 MB by HTTP, the same bytes
    head -c 8000000 /dev/urandom >"$work/file"
    (cd "$work" && exec ip netns exec "$b" python3 -m http.server --bind 10.1.0.2 8000) >/dev/null 2>&1 &
    echo $! >"$work/server.pid"
    wait_for in_a curl --silent --fail --output "$work/copy" --max-time 10 http://10.1.0.2:8000/file
    kill_one server
    cmp "$work/file" "$work/copy"
}
warnings() { # no warning of ovs-vswitchd's, but for those that it was not given the processor for long
    ! grep -E '\|(WARN|ERR|EMER)\|' "$work/vswitchd.log" | grep -vE '\|(timeval|ovs_rcu)(\([^|]*)?\|WARN\||nreasonably long'
}
mode_0600() { [ "$(stat -c %a "$work/flowlift.ctl")" = 600 ]; }
more_than() { # VALUE LIMIT
    echo "$1, limit $2"
    python3 -c "import sys; sys.exit(not $1 > $2)"
}
less_than() {
    echo "$1, limit $2"
    python3 -c "import sys; sys.exit(not $1 < $2)"
}
equal() {
    echo "$1, wanted: $2"
    [ "$1" = "$2" ]
}
in_flows() { "$flowlift" flows "$1" | grep -q "$2"; }
