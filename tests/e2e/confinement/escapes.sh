#!/bin/sh
# Known ways out of a container, each tried with a shell's means. Prints `<what>: refused`, or what it got away with.
try() {
    what=$1
    shift
    if "$@" >/dev/null 2>&1; then echo "$what: DONE"; else echo "$what: refused"; fi
}
mkdir -p /mnt
# What is not there is no file of the kernel's: to make one in its place is no way out.
write() { test -e "$1" && echo "$2" > "$1"; }

# /proc and /sys
try "write core_pattern" write /proc/sys/kernel/core_pattern '|/x'
try "write modprobe" write /proc/sys/kernel/modprobe /x
try "write sysrq-trigger" write /proc/sysrq-trigger h
try "write uevent_helper" write /sys/kernel/uevent_helper /x
try "write binfmt_misc" write /proc/sys/fs/binfmt_misc/register ':x:M::x::/x:'
try "write a module parameter" write /sys/module/printk/parameters/time Y
try "read kcore" sh -c 'head -c 1 /proc/kcore | grep -q .'
try "read kernel keys" sh -c 'head -c 1 /proc/keys | grep -q .'
try "read firmware" sh -c 'ls /sys/firmware | grep -q .'
try "remount proc" mount -o remount,rw /proc/sys
try "mount proc anew" mount -t proc proc /mnt
try "mount sysfs anew" mount -t sysfs sysfs /mnt
try "bind over a masked path" mount --bind /proc /mnt
try "unmount a masked path" umount /proc/kcore

# Devices
try "use a kernel log node" sh -c 'mknod /kmsg c 1 11 && : < /kmsg'
try "use a disk node" sh -c 'set -- $(grep -E " (vda|sda|nvme0n1)$" /proc/partitions | head -1); mknod /disk b $1 $2 && head -c 1 /disk'
try "use a disk node in /dev" sh -c 'mknod /dev/disk b 254 0 && head -c 1 /dev/disk'
try "use /dev/mem" sh -c 'mknod /mem c 1 1 && head -c 1 /mem'
try "change a shared device" chmod 000 /dev/null

# Mounts and namespaces
try "mount a disk" mount /dev/vda /mnt
try "new user namespace" unshare -U true
try "new mount namespace" unshare -m true
try "enter another's namespaces" nsenter -t 1 -n -m true
try "leave by chroot" sh -c 'mkdir -p /jail && chroot /jail/../../.. test -e /var/lib/stave'
try "leave by a link in a mount" sh -c 'ln -s /proc/1/root/../../.. /out && test -e /out/var/lib/stave'

# Control groups
try "cgroup release_agent" sh -c 'for at in /sys/fs/cgroup /sys/fs/cgroup/*; do echo /x > $at/release_agent && exit 0; done; exit 1'
try "mount a cgroup" mount -t cgroup -o memory cgroup /mnt
try "raise a limit" sh -c 'for at in /sys/fs/cgroup/*/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do echo 99999999999 > $at && exit 0; done; exit 1'

# Processes and the program that started this one
try "write own start program" sh -c ': > /proc/self/exe'
try "write the init's program" sh -c 'cat /proc/1/exe > /dev/null && : > /proc/1/exe'
try "see processes outside" sh -c 'test $(ls -d /proc/[0-9]* | wc -l) -gt 20'
try "look into processes outside" sh -c 'for at in /proc/[0-9]*; do kill -0 ${at#/proc/} || { head -c 1 $at/environ | grep -q . && exit 0; ls $at/root/ && exit 0; }; done; exit 1'
try "leaked descriptors" sh -c 'ls -l /proc/1/fd | grep -vE "/dev/null|pipe:|/proc/|^total|/try.sh|/tried" | grep -q -- "->"'

try "leave by a working directory" sh -c 'for at in 3 4 5 6 7 8 9 10 11 12; do cd /proc/self/fd/$at && test -e ../../../../var/lib/dpkg/status && exit 0; done; exit 1'
try "leave by another's root" sh -c 'for at in /proc/[0-9]*; do test -e $at/root/var/lib/dpkg/status && exit 0; test -e $at/cwd/../../../../var/lib/dpkg/status && exit 0; done; exit 1'

# The kernel
try "change the host name of others" sh -c 'echo x > /proc/sys/kernel/hostname'
try "raise priorities" nice -n -5 true
try "read the kernel's log" dmesg
try "load a module" insmod /x.ko
try "set the clock" sh -c 'date -s 2001-01-01; test $(date +%Y) -lt 2010'
try "reboot" reboot -f
try "swap" swapon /x
