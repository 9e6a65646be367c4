#!/usr/bin/env bash
# A Ray cluster of hosts with addresses of their own, on one machine: see README.md beside this file. Needs root.
set -euo pipefail

NAME=${LOCAL_CLUSTER:-gl}                    # at most 8 letters: interfaces are called NAME0, NAME1, ...
SUBNET=${LOCAL_CLUSTER_SUBNET:-10.77.0}      # hosts are SUBNET.10 (the head), SUBNET.11, ...
CPUS=${NODE_CPUS:-}                          # cores that a node may use, such as 0.5; empty: no limit
CLOCK=${NODE_CLOCK:-}                        # seconds that the clocks of Python on the nodes are ahead, such as 3600
HERE=$(dirname "$(readlink -f "$0")")
BIN=${RAY_BIN:-$(dirname "$(command -v ray || echo /ray-is-not-in-PATH/ray)")}
STATE=/tmp/$NAME
PORT=6379

usage() {
    cat <<'TEXT'
usage: cluster.sh up N            a head without cores, and N nodes with one core each
       cluster.sh down            end all processes and remove all networks
       cluster.sh run CMD...      run a command on the head; RAY_ADDRESS and the token are set
       cluster.sh cut NODE        lose every packet from and to the node
       cluster.sh heal NODE       the opposite of cut
       cluster.sh slow NODE RATE DELAY   such as: slow 1 100mbit 0ms; DELAY needs netem; RATE "off" takes both away
       cluster.sh kill NODE       end all processes of the node at once, as a power cut does
       cluster.sh stop NODE       tell them to end (SIGTERM), and kill what lives 10 s later, as a scheduler does
       cluster.sh start NODE      start a node that was killed or stopped
       cluster.sh status          hosts and their links
NODE is 1, 2, ...; head is the head.
TEXT
}

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

index() { # of a host's name, checked
    case $1 in
        head) echo 0 ;;
        *[!0-9]* | '' | 0) die "NODE: found '$1', expected head or a number from 1" ;;
        *) [[ -d $STATE/host$1 ]] || die "NODE: there is no node $1 in $STATE; see: cluster.sh status"; echo "$1" ;;
    esac
}

address() { echo "$SUBNET.$((10 + $1))"; }

cpu_group() { # the cgroup that holds host $1 to its share of a core; nothing is printed where there is no limit
    [[ -n $CPUS && $1 != 0 ]] || return 0
    local quota group
    quota=$(awk -v cpus="$CPUS" 'BEGIN { printf "%d", cpus * 10000 }')
    if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
        group=/sys/fs/cgroup/$NAME$1
        mkdir -p "$group"
        echo "$quota 10000" >"$group/cpu.max" || die "NODE_CPUS: the cgroup controller cpu is not enabled"
    else
        group=/sys/fs/cgroup/cpu/$NAME$1
        mkdir -p "$group" || die "NODE_CPUS: no cgroup controller cpu on this machine"
        echo 10000 >"$group/cpu.cfs_period_us" # short, or one host waits long for another that is held back
        echo "$quota" >"$group/cpu.cfs_quota_us"
    fi
    echo "$group"
}

boot() { # host $1: a process that is init of namespaces of its own, in which Ray is started again when it ends
    local i=$1 role group path=$PYTHONPATH
    group=$(cpu_group "$i")
    [[ -z $CLOCK || $i == 0 ]] || path=$HERE/wrong_clock:$path
    if [[ $i == 0 ]]; then
        role="--head --port=$PORT --num-cpus=0 --include-dashboard=true --dashboard-host=127.0.0.1"
    else
        role="--address=$(address 0):$PORT --num-cpus=1"
    fi
    mkdir -p "$STATE/host$i/ray"
    # shellcheck disable=SC2016 # expanded by the inner shell
    (
        [[ -z $group ]] || echo "$BASHPID" >"$group/cgroup.procs" # before it has children, which would stay outside
        exec env PYTHONPATH="$path" NODE_CLOCK="$CLOCK" setsid nsenter --net="/run/netns/$NAME$i" \
            unshare --mount --uts --pid --fork --kill-child --mount-proc \
            bash -c '
            i=$1 state=$2 role=$3 address=$4 bin=$5 name=$6
            hostname "$name$i"
            mount -t tmpfs tmpfs /dev/shm      # or workers on two hosts would find that they share memory
            mount --bind "$state/hosts" /etc/hosts
            mkdir -p /tmp/ray && mount --bind "$state/host$i/ray" /tmp/ray
            stopping=
            trap "stopping=1; kill -TERM -1" TERM   # to all of the host but this process
            while [[ -z $stopping ]]; do
                "$bin/ray" start $role --node-ip-address="$address" --object-store-memory=200000000 \
                    --disable-usage-stats --block &
                wait $! || true
                [[ -z $stopping ]] || break
                echo "ray on $name$i ended; started again in 2 s"
                sleep 2
            done
            wait' host "$i" "$STATE" "$role" "$(address "$i")" "$BIN" "$NAME" \
            </dev/null >>"$STATE/host$i/log" 2>&1
    ) &
    echo $! >"$STATE/host$i/pid"
    disown
}

init_of() { # the process whose namespaces are the host's
    local pid
    pid=$(pgrep -P "$(cat "$STATE/host$1/pid")" 2>/dev/null | head -n 1) || true
    [[ -n $pid ]] || die "host $1 is not running; see $STATE/host$1/log"
    echo "$pid"
}

stop() { # host $1, with 10 s of grace
    kill -TERM "$(init_of "$1")"
    for _ in $(seq 100); do
        runs "$1" || return 0
        sleep 0.1
    done
    kill -KILL "$(cat "$STATE/host$1/pid")"
}

runs() { # whether host $1 does; the process that held it may be a zombie for a while
    pgrep -P "$(cat "$STATE/host$1/pid")" >/dev/null
}

on_head() {
    nsenter --target "$(init_of 0)" --net --mount --uts --pid --wdns="$PWD" \
        env PATH="$BIN:$PATH" RAY_ADDRESS="$(address 0):$PORT" "$@"
}

up() {
    local nodes=${1:-}
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || die "up N: found '$nodes', expected a number of nodes from 1 to 99"
    [[ $(id -u) == 0 ]] || die "namespaces and networks need root"
    [[ -x $BIN/ray ]] || die "no ray in PATH: activate the environment, or set RAY_BIN to the folder that has it"
    [[ ! -e $STATE ]] || die "$STATE exists: the cluster is up, or was; cluster.sh down"
    mkdir -m 700 "$STATE"
    trap 'clean_up $?' EXIT
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$STATE/token")
    {
        echo "127.0.0.1 localhost"
        for i in $(seq 0 "$nodes"); do echo "$(address "$i") $NAME$i"; done
    } >"$STATE/hosts"
    ip link add "${NAME}br" type bridge
    ip link set "${NAME}br" up
    for i in $(seq 0 "$nodes"); do
        ip netns add "$NAME$i"
        ip link add "$NAME$i" type veth peer name eth0 netns "$NAME$i"
        ip link set "$NAME$i" master "${NAME}br" up
        ip -n "$NAME$i" link set lo up
        ip -n "$NAME$i" link set eth0 up
        ip -n "$NAME$i" address add "$(address "$i")/24" dev eth0
    done
    boot 0
    for i in $(seq 1 "$nodes"); do
        boot "$i"
    done
    wait_for "$nodes"
    echo "head $(address 0):$PORT and $nodes nodes are up; scale.ray_address: $(address 0):$PORT"
}

clean_up() { # after a start that failed
    [[ $1 != 0 ]] || return 0
    tail -n 5 "$STATE"/host[0-9]*/log >&2 || true
    down
}

wait_for() { # $1 nodes that have joined
    local until=$((SECONDS + 240)) found=
    while ((SECONDS < until)); do
        found=$(on_head timeout 20 python -c '
import ray
ray.init(logging_level="critical", log_to_driver=False)
print(round(ray.cluster_resources().get("CPU", 0)))' 2>/dev/null) || true
        [[ $found == "$1" ]] && return
        sleep 1
    done
    die "after 4 minutes ${found:-none} of $1 nodes had joined"
}

down() {
    for pid in "$STATE"/host[0-9]*/pid; do
        [[ ! -f $pid ]] || kill -KILL "$(cat "$pid")" 2>/dev/null || true
    done
    sleep 0.5
    ip -o link show 2>/dev/null | sed -n "s/^[0-9]*: \(${NAME}[0-9]*\)@.*/\1/p" | while read -r link; do
        ip link delete "$link"
    done
    ip link delete "${NAME}br" 2>/dev/null || true
    ip netns list | awk '{ print $1 }' | grep -E "^${NAME}[0-9]+\$" | while read -r net; do
        ip netns delete "$net"
    done || true
    for group in /sys/fs/cgroup/"$NAME"[0-9]* /sys/fs/cgroup/cpu/"$NAME"[0-9]*; do
        [[ ! -d $group ]] || rmdir "$group" || true
    done
    rm -rf "$STATE"
}

slow() {
    local i=$1 rate=$2 delay=$3 end
    for end in "" "-n $NAME$i"; do
        local dev=$NAME$i
        [[ -z $end ]] || dev=eth0
        # shellcheck disable=SC2086 # $end is no word, or two
        tc $end qdisc delete dev "$dev" root 2>/dev/null || true
        [[ $rate != off ]] || continue
        if [[ $delay =~ ^0+(ms|us|s)?$ ]]; then # a token bucket of one large packet, and at most 50 ms of queue
            # shellcheck disable=SC2086
            tc $end qdisc add dev "$dev" root tbf rate "$rate" burst 64kb latency 50ms ||
                die "RATE: '$rate' was refused; expected such as 100mbit"
        else
            # shellcheck disable=SC2086
            tc $end qdisc add dev "$dev" root netem rate "$rate" delay "$delay" 2>/dev/null ||
                die "DELAY: this kernel has no netem, or '$rate' or '$delay' is not one of tc's; with 0ms only RATE is set"
        fi
    done
}

[[ $# -gt 0 ]] || { usage >&2; exit 2; }
command=$1
shift
[[ ! -f $STATE/token || $command == up ]] || export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$STATE/token
case $command in
    up)
        export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$STATE/token PYTHONPATH=${PYTHONPATH:-$PWD}
        export RAY_USAGE_STATS_ENABLED=0
        up "$@"
        ;;
    down) down ;;
    run)
        [[ -f $STATE/token ]] || die "no cluster: cluster.sh up N"
        on_head "$@"
        ;;
    cut | heal | slow | kill | stop | start)
        [[ -f $STATE/token ]] || die "no cluster: cluster.sh up N"
        host=${1:-}
        i=$(index "$host")
        case $command in
            cut) ip link set "$NAME$i" nomaster ;; # the carrier stays: packets vanish, as behind a broken switch
            heal) ip link set "$NAME$i" master "${NAME}br" ;;
            slow) slow "$i" "${2:?slow NODE RATE DELAY}" "${3:?slow NODE RATE DELAY}" ;;
            kill) kill -KILL "$(cat "$STATE/host$i/pid")" ;;
            stop) stop "$i" ;;
            start)
                export PYTHONPATH=${PYTHONPATH:-$PWD} RAY_USAGE_STATS_ENABLED=0
                ! runs "$i" || die "node $host runs"
                boot "$i"
                ;;
        esac
        ;;
    status)
        for folder in "$STATE"/host[0-9]*; do
            [[ -d $folder ]] || die "no cluster: cluster.sh up N"
            i=${folder##*host}
            runs "$i" && state="up" || state="down"
            ip -o link show "$NAME$i" | grep -q "master ${NAME}br" && link="connected" || link="cut"
            echo "$NAME$i $(address "$i") $state $link $(tc qdisc show dev "$NAME$i" root)"
        done
        ;;
    *)
        usage >&2
        die "'$command' is no command"
        ;;
esac
