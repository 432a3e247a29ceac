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

# removed DEVICE: pulls the bound function from under a process that drives it, and plugs it in again.
removed() {
    nic=$(address "$1")
    flowlift nic bind "$nic"
    vfio_guest hold "$nic" >/tmp/hold &
    holder=$!
    until grep -q HOLDING /tmp/hold; do usleep 20000; kill -0 $holder; done
    says "being driven by a process" flowlift nic unbind "$nic"
    # The kernel waits in this write until the holder has let go.
    timeout 10 sh -c "echo 1 >/sys/bus/pci/devices/$nic/remove"
    wait $holder
    cat /tmp/hold
    test ! -e "/sys/bus/pci/devices/$nic"
    says "there is no PCI function" flowlift nic inspect "$nic"
    echo 1 >/sys/bus/pci/rescan
    test "$(address "$1")" = "$nic"
}
