// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * User space of a guest of another architecture: process 1, a static program that hibernates once.
 *
 * It loads the modules named in /modules/order, makes a swap area of /dev/vda, locks pages that contain their identity,
 * prints where they are on the console, and hibernates. hibernaut.lab.other_machines reads these lines:
 *
 *   hlab: kernel RELEASE VERSION
 *   hlab: pages COUNT BYTES      number of locked pages, and the size of each
 *   hlab: frame INDEX PFN        where page INDEX is
 *   hlab: failed WHAT: REASON    it does not hibernate
 *
 * Word W of page INDEX is (INDEX << 32 | W) * 0x9e3779b97f4a7c15 modulo 2**64.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define PAGES 64
#define DISK "/dev/vda"

static long page_bytes;

static void fail(const char *what)
{
	printf("hlab: failed %s: %s\n", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail(path);
	close(fd);
}

static void load_modules(void)
{
	char name[256], path[300];
	FILE *order = fopen("/modules/order", "re");

	while (order && fscanf(order, "%255s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fail(path);
		close(fd);
	}
	if (order)
		fclose(order);
}

/* A swap header as mkswap writes it: version 1, the last page, the signature at the end of the first page. */
static void make_swap(void)
{
	int fd = open(DISK, O_RDWR | O_CLOEXEC);
	uint32_t *header = calloc(1, page_bytes);
	off_t bytes = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

	if (fd < 0 || bytes < 0 || !header)
		fail(DISK);
	header[256] = 1;
	header[257] = bytes / page_bytes - 1;
	memcpy((char *)header + page_bytes - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, header, page_bytes, 0) != page_bytes || fsync(fd))
		fail("mkswap");
	close(fd);
	free(header);
	if (swapon(DISK, 0))
		fail("swapon");
}

static void fill_pages(void)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t *memory = mmap(NULL, PAGES * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t words = page_bytes / sizeof(uint64_t);

	if (memory == MAP_FAILED || mlock(memory, PAGES * page_bytes))
		fail("mlock");
	for (uint64_t at = 0; at < PAGES * words; at++)
		memory[at] = ((at / words) << 32 | at % words) * 0x9e3779b97f4a7c15ull;
	printf("hlab: pages %d %ld\n", PAGES, page_bytes);
	for (uint64_t index = 0; index < PAGES; index++) {
		uint64_t entry = 0, number = (uintptr_t)(memory + index * words) / page_bytes;

		if (pread(pagemap, &entry, sizeof(entry), number * sizeof(entry)) != sizeof(entry) || !(entry >> 63))
			fail("pagemap");
		printf("hlab: frame %u 0x%llx\n", (unsigned int)index, (unsigned long long)(entry & ((1ull << 55) - 1)));
	}
}

int main(void)
{
	struct utsname name;
	char device[32];
	struct stat disk;

	setvbuf(stdout, NULL, _IOLBF, 0);
	page_bytes = sysconf(_SC_PAGESIZE);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	uname(&name);
	printf("hlab: kernel %s %s\n", name.release, name.version);
	load_modules();
	for (int tries = 0; stat(DISK, &disk) && tries < 100; tries++)
		usleep(100000); /* a driver may look for its devices after its module is loaded */
	if (stat(DISK, &disk))
		fail(DISK);
	make_swap();
	if (access("/proc/sys/vm/compact_unevictable_allowed", F_OK) == 0)
		write_text("/proc/sys/vm/compact_unevictable_allowed", "0"); /* locked pages keep their frames */
	fill_pages();
	snprintf(device, sizeof(device), "%u:%u", (unsigned int)(disk.st_rdev >> 8), (unsigned int)(disk.st_rdev & 0xff));
	write_text("/sys/power/resume", device);
	write_text("/sys/power/disk", "shutdown");
	write_text("/sys/power/state", "disk");
	printf("hlab: failed: the guest is running on\n");
	reboot(RB_POWER_OFF);
	return 1;
}
