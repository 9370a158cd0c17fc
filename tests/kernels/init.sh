#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a machine: the host's root read-only over 9p, under a file system in memory that takes every
# write, and in it the command that the machine is for. Modules stay here, where the kernel looks for modprobe.
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /host /memory /root /sbin /etc
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs dev /dev
$busybox ln -s $busybox /sbin/modprobe
for module in virtio_pci 9pnet_virtio 9p overlay; do
  /sbin/modprobe -q $module
done
share=trans=virtio,version=9p2000.L,msize=262144
$busybox mount -t 9p -o ro,cache=loose,$share host /host &&
  $busybox mount -t tmpfs memory /memory &&
  $busybox mkdir /memory/upper /memory/work &&
  $busybox mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root || {
  echo "init: no root file system"
  $busybox poweroff -f
}
for directory in proc sys dev; do
  $busybox mount --move /$directory /root/$directory
done
# The kernel reads /proc/sys/kernel/modprobe here, and modprobe reads /proc/modules.
$busybox mount --bind /root/proc /proc
$busybox mount -t tmpfs run /root/run
$busybox mount -t bpf bpf /root/sys/fs/bpf
$busybox mkdir /root/run/report /root/run/netns
$busybox mount -t 9p -o $share report /root/run/report
$busybox ip link set lo up
$busybox chroot /root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp /bin/sh /run/report/command
echo $? >/root/run/report/status
$busybox poweroff -f
