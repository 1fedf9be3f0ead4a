#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Does hibernation save pages that are missing in the direct map, and leave the map as it was? Prints TAP.
#
# Without swap the kernel makes its image, finds no place to write it to, and continues: everything that it did to the
# direct map while it copied can be read then. Nothing is written and nothing is resumed. The regions stay out of the
# direct map until the next boot. A kernel without the cure crashes in the last cases.

KSFT_FAIL=1 KSFT_SKIP=4
here=$(dirname "$0")
module=${1:-$here/hlab_region.ko}
report=/proc/hlab_region
cases="4k:below 2m:below 2m:above none:below none-2m:below"

skip_all()
{
	echo "1..0 # SKIP $1"
	exit $KSFT_SKIP
}

field() # KEY LINE
{
	echo " $2" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"
}

region() # WISH
{
	grep "^region wish=$1 " $report
}

allocations()
{
	field allocations "$(grep '^module ' $report)"
}

images()
{
	dmesg | grep -c "hibernation: Image created"
}

echo "TAP version 13"
[ "$(id -u)" = 0 ] || skip_all "needs root"
[ -w /sys/power/state ] && grep -qw disk /sys/power/state || skip_all "this kernel cannot hibernate"
[ "$(wc -l < /proc/swaps)" -le 1 ] || skip_all "swap is in use: the image would be written there (swapoff -a)"
[ -e "$module" ] || skip_all "$module is not built: run make"
# A compiler may have added a suffix to its name; a part that was moved out of it (.cold, .part) does not count.
allocator=$(grep -o -E ' (__alloc_frozen_pages_noprof|__alloc_pages_noprof|__alloc_pages|__alloc_pages_nodemask)([.].*)?$' \
	/proc/kallsyms | grep -v -E '[.](cold|part)' | sort | head -n 1)
insmod "$module" allocator="${allocator# }" || skip_all "the module cannot be loaded"
echo control > $report 2>/dev/null
probe="allocations counted"
[ "$(field seen "$(grep '^control ' $report)")" = 1 ] || probe="allocations not counted"
echo arm > $report
[ -w /sys/power/pm_debug_messages ] && echo 1 > /sys/power/pm_debug_messages

echo "1..$(echo $cases | wc -w)"
echo "# $(uname -r), $probe"
number=0 failed=0 skipped=0
for wish in $cases; do
	number=$((number + 1))
	if ! echo "make=$wish" > $report 2>/dev/null; then
		echo "ok $number $wish # SKIP no block of memory fits"
		skipped=$((skipped + 1))
		continue
	fi
	before=$(region $wish) counted=$(allocations) made=$(images)
	echo "# $wish: the machine may crash now"
	sync
	echo disk > /sys/power/state 2>/dev/null
	after=$(region $wish)
	why=
	[ "$(images)" -gt "$made" ] || why="no image was made: $(dmesg | tail -n 1)"
	[ "$(allocations)" = "$counted" ] || why="${why}allocations in the copy: $(($(allocations) - counted)); "
	for key in pmd level present hidden none wrong rights lone; do
		[ "$(field $key "$before")" = "$(field $key "$after")" ] ||
			why="$why$key was $(field $key "$before"), is $(field $key "$after"); "
	done
	[ "$(field damaged "$after")" = 0 ] || why="$why$(field damaged "$after") pages damaged; "
	echo owner > $report
	[ "$(field owner "$(region $wish)")" != faults ] || why="${why}its owner faults when it writes; "
	if [ -n "$why" ]; then
		echo "not ok $number $wish # $why"
		failed=$((failed + 1))
	else
		echo "ok $number $wish"
	fi
done
echo "# Totals: pass:$((number - failed - skipped)) fail:$failed xfail:0 xpass:0 skip:$skipped error:0"
[ $failed = 0 ] || exit $KSFT_FAIL
