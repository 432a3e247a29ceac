# What the steps share.

# The address of the device that `flowlift nic list` calls $1.
address() {
    flowlift nic list | awk -v name="$1" '$3 == name { print $1 }'
}

# says TEXT COMMAND...: the command must fail, and say TEXT.
says() {
    text=$1
    shift
    if out=$("$@" 2>&1); then
        echo "should have failed: $*"
        return 1
    fi
    echo "$out"
    case $out in *"$text"*) ;; *) echo "does not say '$text'"; return 1 ;; esac
}

# as_user COMMAND: as an ordinary user.
as_user() {
    su nic -c "$1"
}

# driver ADDRESS: the driver that a function is bound to.
driver() {
    basename "$(readlink "/sys/bus/pci/devices/$1/driver" || echo none)"
}

# iommu_faults: how many accesses the IOMMU reported as blocked.
iommu_faults() {
    dmesg | grep -c 'DMAR:.*fault addr' || true
}

# live ADDRESS ARGUMENT...: `flowlift replay` serves packets for a while; its report, and how many went which way.
live() {
    nic=$1
    report=/tmp/live.$(id -u)
    shift
    flowlift replay --nic "$nic" --flows /flows/both --live 1 "$@" | tee "$report"
    awk '/10\.0\.0\.2/ { f = $1 } /10\.0\.0\.3/ { b = $1 } /^packets / { h = $5 }
        END { print "FIGURE packets: " f " forward, " b " back, " h " in hardware" }' "$report"
    grep -q 'ready, 0 resets, 0 violations' "$report"
}

# many COUNT: as many flows.
many() {
    awk -v n="$1" 'BEGIN { for (i = 0; i < n; i++) print "recirc_id(0),in_port(1),eth_type(0x0800),ipv4(dst=11.0." int(i / 256) "." i % 256 ",frag=no), packets:0, bytes:0, used:never, actions:2" }'
}

# removed DEVICE COMMAND...: pulls the bound function from under a command that drives it, says that it is ready, and lets go
# of it when it is asked to; then plugs it in again.
removed() {
    device=$1
    nic=$(address "$device")
    shift
    flowlift nic bind "$nic"
    "$@" "$nic" >/tmp/hold 2>&1 &
    holder=$!
    until grep -qE 'HOLDING|ready, serving' /tmp/hold; do usleep 20000; kill -0 $holder; done
    says "being driven by a process" flowlift nic unbind "$nic"
    # The kernel waits in this write until the holder has let go.
    timeout 60 sh -c "echo 1 >/sys/bus/pci/devices/$nic/remove"
    wait $holder
    cat /tmp/hold
    test ! -e "/sys/bus/pci/devices/$nic"
    says "there is no PCI function" flowlift nic inspect "$nic"
    echo 1 >/sys/bus/pci/rescan
    test "$(address "$device")" = "$nic"
}
