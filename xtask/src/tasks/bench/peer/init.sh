#!/bin/busybox sh
# The first process of the machine under KVM: each guest once, with what is measured as PEER's argument. `what` is from the kernel's
# command line.
export PATH=/bin LD_LIBRARY_PATH=/lib
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in /modules/*.ko; do insmod $module || echo "COSTS-FAIL $module"; done
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
[ -e /dev/vhost-net ] || mknod /dev/vhost-net c 10 238
dd if=/dev/zero of=/tmp/disk bs=1M count=64 2>/dev/null
brctl addbr br0
ip link set br0 up

# guest SERIAL INITRAMFS MODE ARGS...
guest() {
    serial=$1 initrd=$2 mode=$3
    shift 3
    costs exec /bin/qemu -accel kvm -cpu host -M pc -smp 1 -m 256 -nodefaults -no-user-config -display none -no-reboot -monitor none \
        -serial $serial -L /share -kernel /guest/kernel -initrd /guest/$initrd.gz \
        -append "console=ttyS0 quiet net.ifnames=0 costs=$mode" "$@" </dev/null
}
lines() { tr -d '\r' </tmp/out | grep -a -E 'BENCH|COSTS-FAIL|LOST'; }
disk="-drive file=/tmp/disk,format=raw,if=none,id=d,cache=writeback,aio=threads"

if [ "$what" = rest ]; then
    echo PEER pc
    guest stdio costs boot 2>&1 | costs stamp
    guest file:/tmp/out costs tty
    lines
    echo PEER pc
    guest file:/tmp/out virtio blk $disk -device virtio-blk-pci,drive=d
    lines
    echo PEER iothread
    guest file:/tmp/out virtio blk -object iothread,id=io $disk -device virtio-blk-pci,drive=d,iothread=io
    lines
fi
net_between() {
    vhost=$1
    net() { echo "-netdev tap,id=n,ifname=$1,script=/tap-up,downscript=no,vhost=$vhost -device virtio-net-pci,netdev=n,romfile=,mac=52:54:00:00:00:0$2"; }
    guest file:/tmp/other virtio receive $(net tap1 2) &
    tries=0
    until grep -a -q RECEIVER /tmp/other 2>/dev/null || [ $tries = 300 ]; do
        usleep 100000
        tries=$((tries + 1))
    done
    guest file:/tmp/out virtio send $(net tap0 1)
    wait
    lines
}
case $what in
    tap)
        echo PEER tap
        net_between off
        ;;
    vhost)
        echo PEER vhost
        net_between on
        ;;
esac
echo PEER-END
poweroff -f
