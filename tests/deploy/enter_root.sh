#!/bin/sh
# Make another folder the root, in mount and process namespaces of its own, and run a command there as one of its users.
# A chroot would not do: the kernel refuses user namespaces inside one, and the embedded PostgreSQL makes some for root.
#
# usage: unshare --mount --pid --fork --kill-child sh enter_root.sh ROOT USER COMMAND ...
# READ_ONLY and TINY may each name one folder of the new root: mounted read-only, or put on a disk of 4 MB.
set -eu
root=$1 user=$2
shift 2

mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -n "${READ_ONLY:-}" ]; then
  mount --bind "$root$READ_ONLY" "$root$READ_ONLY"
  mount -o remount,bind,ro "$root$READ_ONLY"
fi
if [ -n "${TINY:-}" ]; then
  mkdir -p "$root$TINY"
  mount -t tmpfs -o size=4m tmpfs "$root$TINY"
fi
cd "$root"
pivot_root . .
umount -l .
cd /
# Not exec: this shell stays the namespace's first process, so that the command is an ordinary one that Ctrl-C ends.
setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@"
