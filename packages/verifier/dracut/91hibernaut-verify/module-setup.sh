#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# dracut: systemd resumes through the verifier, in place of its own program.
# Installed as /usr/lib/dracut/modules.d/91hibernaut-verify.

# called by dracut
check() {
	require_binaries python3 readlink || return 1
	[[ -r /etc/hibernaut/verify.conf ]] || return 1
	# Without systemd's program, dracut's module `resume` installs a script of its own, which nothing would stop.
	# shellcheck disable=SC2154 # set by dracut
	if [[ ! -x ${dracutsysrootdir-}$systemdutildir/systemd-hibernate-resume ]]; then
		derror "hibernaut-verify: no systemd-hibernate-resume: a verified resume is not possible"
		return 1
	fi
	return 0
}

# called by dracut
depends() {
	# Without systemd, dracut's module `resume` resumes from a rule of udev, before any hook: nothing can stop it.
	# With systemd, it installs the unit that this module changes; it leaves it out where no resume is configured.
	echo systemd resume
	return 0
}

# called by dracut
installkernel() {
	# shellcheck disable=SC2034 # of dracut: of a TPM, the machine that boots decides, not the one that makes this
	hostonly='' instmods -c tpm_tis tpm_crb
}

# called by dracut
install() {
	local from=${HIBERNAUT_LIB:-/usr/lib/hibernaut} conf=/etc/hibernaut/verify.conf file
	local KEY='' SECRET='' MANIFEST='' TPM_COUNTER=''

	inst_multiple readlink sh
	inst_simple "$from/resume" /lib/hibernaut/resume
	inst_simple "$from/hibernaut-verify.pyz" /lib/hibernaut/hibernaut-verify.pyz
	inst_simple "$conf"
	# shellcheck disable=SC1090
	. "$conf"
	for file in $KEY $SECRET $MANIFEST; do
		inst_simple "$file"
	done
	# The interpreter and the part of its library that the verifier needs; inst adds shared libraries.
	inst "$(command -v python3)"
	while read -r file; do
		inst "$file"
	done < <(python3 -I -S "$from/hibernaut-verify.pyz" --files)
	# The counter of a TPM: tpm2-tools, and the library that opens the device, which no program names.
	if [[ -n $TPM_COUNTER ]]; then
		inst_multiple tpm2_nvreadpublic tpm2_nvread tpm2_nvincrement
		inst_libdir_file "libtss2-tcti-device.so*"
	fi
	# Since systemd 255 the unit has no instance; before, its instance is the device.
	# shellcheck disable=SC2154 # set by dracut
	for file in systemd-hibernate-resume.service.d systemd-hibernate-resume@.service.d; do
		inst_simple "$moddir/verify-first.conf" "$systemdsystemunitdir/$file/verify-first.conf"
	done
}
