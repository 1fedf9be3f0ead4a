// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * User space of a laboratory guest: process 1, a static program.
 *
 * It loads the kernel modules named in /modules/order, opens its port (a serial line) and runs the host's commands, one
 * line each. hibernaut.lab.vm.port is the other end of the protocol:
 *
 *   host to guest    SEQ COMMAND
 *   guest to host    @ SESSION SEQ KIND [TEXT]
 *
 * KIND is "hello" (once, SEQ 0, TEXT the kernel's release), "out" (a line of the command's output) or "end" (TEXT the
 * exit status). SESSION comes from the kernel command line (hlab_session=...): after a resume the lines carry the
 * session of the saved machine, so a fresh boot cannot be mistaken for a resume.
 * A COMMAND that starts with '!' is one of those below, anything else goes to the shell.
 *
 *   !fill REGION PAGES SEED      make a region of pages that contain their identity: "locked" (mlocked, so it is in the
 *                                image), "loose" (may be swapped out), "huge" (likewise, of huge pages where the
 *                                kernel has some) or "secret" (memfd_secret)
 *   !verify REGION               compare every page with its expected content
 *   !frames REGION               print the region's frames, in runs
 *   !peek REGION PAGE AT COUNT   print bytes in hex
 *   !extent FILE                 print the first block of a file on its device, in pages of 4096 bytes
 *   !insmod FILE [PARAMETERS]    load a kernel module
 *   !prefer NODE                 prefer a NUMA node for all further allocations (set_mempolicy)
 *   !churn TIMES                 let the kernel allocate and free small objects, a millisecond apart, for KFENCE
 *   !pageflags FIRST COUNT       print the flags of frames (/proc/kpageflags) that decide whether they are saved, in runs
 *   !kexec FILE FLAGS            load a kernel to boot next (kexec_file_load)
 *   !filters COUNT               attach COUNT filters, each one JITed program, and drop every second one
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define HUGE_BYTES (2UL << 20)
#define HEAD_BYTES 80
#define LINE_BYTES 4096
#define SAVING_FLAGS (1ull << 10 | 1ull << 20 | 1ull << 23 | 1ull << 32) /* KPF_BUDDY, _NOPAGE, _OFFLINE, _RESERVED */
#define MOST_FILTERS 800 /* below the usual limit of open files */
#define FILTER_STEPS 64
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static const char *session = "none";
static const char *sequence = "0";
static FILE *port; /* to the host */

static void say(const char *kind, const char *format, ...)
{
	va_list arguments;

	fprintf(port, "@ %s %s %s ", session, sequence, kind);
	va_start(arguments, format);
	vfprintf(port, format, arguments);
	va_end(arguments);
	fputc('\n', port);
	fflush(port);
}

/* One line of a command's output; bytes that are not printable ASCII go as \xNN, so that a line stays a line. */
static void say_output(const char *text, size_t length)
{
	fprintf(port, "@ %s %s out ", session, sequence);
	for (size_t i = 0; i < length; i++) {
		unsigned char c = text[i];

		if (c == '\t' || (c >= ' ' && c < 127 && c != '\\'))
			fputc(c, port);
		else
			fprintf(port, "\\x%02x", c);
	}
	fputc('\n', port);
	fflush(port);
}

/* ---- regions of memory whose pages contain their identity ---- */

struct region {
	const char *name;
	unsigned char *memory;
	long pages;
	uint64_t seed;
};

static struct region regions[] = { { .name = "locked" }, { .name = "loose" }, { .name = "huge" },
				   { .name = "secret" } };

static struct region *region_named(const char *name)
{
	for (size_t i = 0; name && i < sizeof(regions) / sizeof(regions[0]); i++)
		if (!strcmp(regions[i].name, name))
			return &regions[i];
	say("out", "no region %s", name ? name : "given");
	return NULL;
}

/* The frame behind an address, 0 if it is not in memory. */
static uint64_t frame_of(const void *address)
{
	static int pagemap = -1;
	uint64_t entry = 0;

	if (pagemap < 0)
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pread(pagemap, &entry, sizeof(entry), (uintptr_t)address / PAGE_BYTES * sizeof(entry)) != sizeof(entry))
		return 0;
	return entry >> 63 ? entry & ((1ull << 55) - 1) : 0;
}

static uint64_t mix(uint64_t value)
{
	value += 0x9e3779b97f4a7c15ull;
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ value >> 27) * 0x94d049bb133111ebull;
	return value ^ value >> 31;
}

/*
 * Page INDEX of a region: a line of text with region, page and seed; then, by INDEX modulo 4, pseudorandom words, one
 * word repeated, zeroes, or half pseudorandom words and half zeroes: every kind of data for every compressor.
 */
static void write_page(unsigned char *page, const struct region *region, long index)
{
	uint64_t *words = (uint64_t *)(page + HEAD_BYTES);
	size_t count = (PAGE_BYTES - HEAD_BYTES) / sizeof(*words);
	int kind = index % 4;

	memset(page, 0, PAGE_BYTES);
	snprintf((char *)page, HEAD_BYTES, "hibernaut lab: page %ld of %s, seed %016llx\n", index, region->name,
		 (unsigned long long)region->seed);
	if (kind == 2)
		return;
	for (size_t i = 0; i < (kind == 3 ? count / 2 : count); i++)
		words[i] = mix(region->seed ^ (uint64_t)index << 32 ^ (kind == 1 ? 0 : i));
}

static unsigned char *region_memory(const char *name, long pages)
{
	size_t length = (size_t)pages * PAGE_BYTES;
	unsigned char *memory;
	int fd;

	if (!strcmp(name, "huge")) {
		memory = mmap(NULL, length + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			return memory;
		memory += -(uintptr_t)memory % HUGE_BYTES;
		madvise(memory, length, MADV_HUGEPAGE);
		return memory;
	}
	if (strcmp(name, "secret")) {
		memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory != MAP_FAILED)
			madvise(memory, length, MADV_NOHUGEPAGE); /* collapsed pages change frames */
		if (memory != MAP_FAILED && !strcmp(name, "locked") && mlock(memory, length))
			return MAP_FAILED;
		return memory;
	}
	fd = syscall(SYS_memfd_secret, 0);
	if (fd < 0 || ftruncate(fd, length))
		return MAP_FAILED;
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static int do_fill(char **words)
{
	struct region *region = region_named(words[1]);

	if (!region || !words[2] || !words[3] || region->memory)
		return 2;
	region->pages = strtol(words[2], NULL, 0);
	region->seed = strtoull(words[3], NULL, 0);
	region->memory = region_memory(region->name, region->pages);
	if (region->memory == MAP_FAILED) {
		say("out", "no memory for %s: %s", region->name, strerror(errno));
		region->memory = NULL;
		return 1;
	}
	for (long i = 0; i < region->pages; i++)
		write_page(region->memory + i * PAGE_BYTES, region, i);
	return 0;
}

static int do_verify(char **words)
{
	static unsigned char wanted[PAGE_BYTES];
	struct region *region = region_named(words[1]);
	long bad = 0;

	if (!region || !region->memory)
		return 2;
	for (long i = 0; i < region->pages; i++) {
		const unsigned char *page = region->memory + i * PAGE_BYTES;

		write_page(wanted, region, i);
		if (memcmp(page, wanted, PAGE_BYTES) && bad++ < 8)
			say("out", "bad page=%ld frame=0x%llx", i, (unsigned long long)frame_of(page));
	}
	say("out", "verified region=%s pages=%ld bad=%ld", region->name, region->pages, bad);
	return bad != 0;
}

static int do_frames(char **words)
{
	struct region *region = region_named(words[1]);

	if (!region || !region->memory)
		return 2;
	for (long i = 0, j; i < region->pages; i = j) {
		uint64_t first = frame_of(region->memory + i * PAGE_BYTES);

		for (j = i + 1; j < region->pages; j++) {
			uint64_t next = frame_of(region->memory + j * PAGE_BYTES);

			if (next != (first ? first + (j - i) : 0))
				break;
		}
		say("out", "frames page=%ld first=0x%llx count=%ld", i, (unsigned long long)first, j - i);
	}
	return 0;
}

static int do_peek(char **words)
{
	struct region *region = region_named(words[1]);
	long page, at, count;
	char text[2 * 256 + 1];

	if (!region || !region->memory || !words[2] || !words[3] || !words[4])
		return 2;
	page = strtol(words[2], NULL, 0);
	at = strtol(words[3], NULL, 0);
	count = strtol(words[4], NULL, 0);
	if (page < 0 || page >= region->pages || at < 0 || count < 0 || count > 256 || at + count > PAGE_BYTES)
		return 2;
	for (long i = 0; i < count; i++)
		sprintf(text + 2 * i, "%02x", region->memory[page * PAGE_BYTES + at + i]);
	say("out", "bytes %s", count ? text : "");
	return 0;
}

static int do_extent(char **words)
{
	int fd = words[1] ? open(words[1], O_RDONLY | O_CLOEXEC) : -1;
	int block = 0, block_bytes = 0, status = 1;

	if (fd < 0)
		return 2;
	if (!ioctl(fd, FIGETBSZ, &block_bytes) && !ioctl(fd, FIBMAP, &block)) {
		say("out", "extent block=%lld", (long long)block * block_bytes / PAGE_BYTES);
		status = 0;
	}
	close(fd);
	return status;
}

static int load_module(const char *path, const char *parameters)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int status = fd < 0 ? -1 : syscall(SYS_finit_module, fd, parameters, 0);
	int error = errno;

	if (fd >= 0)
		close(fd);
	return status ? error : 0;
}

static int do_insmod(char **words)
{
	char parameters[LINE_BYTES] = "";
	int error;

	if (!words[1])
		return 2;
	for (int i = 2; words[i]; i++) {
		strcat(parameters, words[i]);
		strcat(parameters, " ");
	}
	error = load_module(words[1], parameters);
	if (error)
		say("out", "%s: %s", words[1], strerror(error));
	return error != 0;
}

static int do_prefer(char **words)
{
	unsigned long nodes = words[1] ? 1ul << strtoul(words[1], NULL, 0) % 64 : 0;

	if (!nodes)
		return 2;
	if (!syscall(SYS_set_mempolicy, MPOL_PREFERRED, &nodes, 8 * sizeof(nodes)))
		return 0;
	say("out", "node %s: %s", words[1], strerror(errno));
	return 1;
}

static int do_churn(char **words)
{
	long times = words[1] ? strtol(words[1], NULL, 0) : 0;

	for (long i = 0; i < times; i++) {
		int ends[2], fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (fd >= 0)
			close(fd);
		if (!pipe2(ends, O_CLOEXEC)) {
			close(ends[0]);
			close(ends[1]);
		}
		usleep(1000);
	}
	return times <= 0;
}

/* The programs differ in length, so that they and the gaps between them do. */
static int attach_filter(int number)
{
	struct sock_filter steps[FILTER_STEPS + 1];
	struct sock_fprog program = { .len = 2 + number % FILTER_STEPS, .filter = steps };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	for (int i = 0; i < program.len - 1; i++)
		steps[i] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, number + i);
	steps[program.len - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0xffff);
	if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program))) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int do_filters(char **words)
{
	static int sockets[MOST_FILTERS];
	static int count; /* of an earlier call, all but those that were dropped */
	int wanted = words[1] ? atoi(words[1]) : 0;

	if (count || wanted <= 0 || wanted > MOST_FILTERS)
		return 2;
	for (count = 0; count < wanted; count++) {
		sockets[count] = attach_filter(count);
		if (sockets[count] < 0) {
			say("out", "filter %d: %s", count, strerror(errno));
			return 1;
		}
	}
	for (int i = 0; i < count; i += 2)
		close(sockets[i]);
	say("out", "filters attached=%d dropped=%d", count, (count + 1) / 2);
	return 0;
}

static int do_pageflags(char **words)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	uint64_t first, count, flags, known = 0, start = 0;

	if (fd < 0 || !words[1] || !words[2])
		return 2;
	first = strtoull(words[1], NULL, 0);
	count = strtoull(words[2], NULL, 0);
	for (uint64_t i = 0; i <= count; i++) {
		if (i == count || pread(fd, &flags, sizeof(flags), (first + i) * sizeof(flags)) != sizeof(flags))
			flags = 1ull << 20; /* the file ends with the last frame that has a struct page */
		flags &= SAVING_FLAGS;
		if (i && (i == count || flags != known)) {
			say("out", "flags first=0x%llx count=%llu value=0x%llx", (unsigned long long)(first + start),
			    (unsigned long long)(i - start), (unsigned long long)known);
			start = i;
		}
		known = flags;
	}
	close(fd);
	return 0;
}

static int do_kexec(char **words)
{
	int fd = words[1] && words[2] ? open(words[1], O_RDONLY | O_CLOEXEC) : -1;
	long status;

	if (fd < 0)
		return 2;
	status = syscall(SYS_kexec_file_load, fd, -1, 1ul, "", strtoul(words[2], NULL, 0));
	if (status)
		say("out", "%s", strerror(errno));
	close(fd);
	return status != 0;
}

static const struct {
	const char *name;
	int (*run)(char **words);
} commands[] = {
	{ "!fill", do_fill },	  { "!verify", do_verify }, { "!frames", do_frames }, { "!peek", do_peek },
	{ "!extent", do_extent }, { "!insmod", do_insmod }, { "!prefer", do_prefer }, { "!churn", do_churn },
	{ "!filters", do_filters }, { "!kexec", do_kexec }, { "!pageflags", do_pageflags },
};

static int run_own(char *line)
{
	char *words[32] = { NULL };
	int count = 0;

	for (char *word = strtok(line, " "); word && count < 31; word = strtok(NULL, " "))
		words[count++] = word;
	for (size_t i = 0; count && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, words[0]))
			return commands[i].run(words);
	say("out", "no such command");
	return 127;
}

static int run_shell(const char *line)
{
	char *text = NULL;
	size_t room = 0;
	ssize_t length;
	int ends[2], status;
	FILE *output;
	pid_t child;

	if (pipe2(ends, O_CLOEXEC))
		return 126;
	child = fork();
	if (child == 0) {
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		execl("/bin/busybox", "sh", "-c", line, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	output = fdopen(ends[0], "r");
	while ((length = getline(&text, &room, output)) >= 0) {
		if (length && text[length - 1] == '\n')
			length--;
		say_output(text, length);
	}
	free(text);
	fclose(output);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void load_modules(void)
{
	char name[256], path[300];
	FILE *order = fopen("/modules/order", "re");

	while (order && fscanf(order, "%255s", name) == 1) {
		int error;

		snprintf(path, sizeof(path), "/modules/%s", name);
		error = load_module(path, "");
		if (error && error != EEXIST)
			printf("hibernaut lab: %s: %s\n", path, strerror(error));
	}
	if (order)
		fclose(order);
}

/* Open the port both ways, set `port` and return the end to read from. */
static FILE *open_port(const char *path)
{
	struct termios settings;
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	if (!tcgetattr(fd, &settings)) {
		cfmakeraw(&settings);
		cfsetspeed(&settings, B115200);
		settings.c_cflag |= CLOCAL | CREAD;
		tcsetattr(fd, TCSANOW, &settings);
	}
	port = fdopen(fcntl(fd, F_DUPFD_CLOEXEC, 0), "w");
	return fdopen(fd, "r");
}

static void set_up(void)
{
	pid_t child = fork();

	if (child == 0) {
		execl("/bin/busybox", "/bin/busybox", "--install", "-s", "/bin", (char *)NULL);
		_exit(127);
	}
	waitpid(child, NULL, 0);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/tmp", 0755);
	mkdir("/mnt", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	setenv("PATH", "/bin:/sbin", 1);
	if (getenv("hlab_session"))
		session = getenv("hlab_session");
}

int main(void)
{
	char line[LINE_BYTES];
	struct utsname name;
	FILE *host;

	set_up();
	load_modules();
	host = open_port("/dev/ttyS1");
	if (!host || !port) {
		printf("hibernaut lab: /dev/ttyS1: %s\n", strerror(errno));
		reboot(RB_AUTOBOOT);
		return 1;
	}
	uname(&name);
	say("hello", "%s", name.release);
	while (fgets(line, sizeof(line), host)) {
		char *command = strchr(line, ' ');
		int status;

		line[strcspn(line, "\n")] = 0;
		if (!command)
			continue;
		*command++ = 0;
		sequence = line;
		status = *command == '!' ? run_own(command) : run_shell(command);
		say("end", "%d", status);
	}
	reboot(RB_AUTOBOOT);
	return 1;
}
