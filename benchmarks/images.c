// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a program in C reaches with the same libraries and calls as `images.py`, without an interpreter:
//
//     images (lzo|lz4) PAGES OUT ROUNDS
//
// PAGES has the pages, OUT is a file to write. The program prints a line for each round and kind of work, its name and
// its seconds: "compress" and "decompress" are the codec with the CRC, from memory into memory; "read" has one read of
// a file in the page cache for each 32 units, too; "write" has a thread for each core that compresses, and two others
// that write past the page cache; in "write-alike" each of as many threads does both. Built by `images.py --in-c`.

#define _GNU_SOURCE
#include <fcntl.h>
#include <isa-l/crc.h>
#include <lz4.h>
#include <lzo/lzo1x.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, UNIT = 128 << 10, ROOM = 160 << 10, BATCH = 32, WRITERS = 2, ROOMS = 16, AHEAD = 32 << 20 };

static int with_lz4, file;
static long units, cores, next_unit;
static unsigned char *pages, *packed, *unpacked;
static long *length, *place;
static volatile uint32_t crc;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static unsigned char *memory(long bytes)
{
	unsigned char *found = NULL;
	check(posix_memalign((void **)&found, 2 << 20, bytes) == 0, "memory");
	madvise(found, bytes, MADV_HUGEPAGE);
	memset(found, 1, bytes);
	return found;
}

static long compress_unit(const unsigned char *from, unsigned char *to, void *work)
{
	lzo_uint bytes = ROOM;
	if (with_lz4)
		return LZ4_compress_default((const char *)from, (char *)to, UNIT, ROOM);
	check(lzo1x_1_compress(from, UNIT, to, &bytes, work) == LZO_E_OK, "lzo1x_1_compress");
	return bytes;
}

static void decompress_unit(const unsigned char *from, long bytes, unsigned char *to)
{
	lzo_uint got = UNIT;
	if (with_lz4)
		got = LZ4_decompress_safe((const char *)from, (char *)to, bytes, UNIT);
	else
		check(lzo1x_decompress_safe(from, bytes, to, &got, NULL) == LZO_E_OK, "lzo1x_decompress_safe");
	check(got == UNIT, "decompress");
	crc ^= crc32_gzip_refl(0, to, UNIT);
}

// The next units for a thread to work on, from *first on; 0 when there are none.
static long take(long *first, long most)
{
	*first = __atomic_fetch_add(&next_unit, most, __ATOMIC_RELAXED);
	return *first >= units ? 0 : *first + most > units ? units - *first : most;
}

static void *compress(void *unused)
{
	void *work = malloc(LZO1X_1_MEM_COMPRESS);
	for (long unit; take(&unit, 1);) {
		length[unit] = compress_unit(pages + unit * UNIT, packed + unit * ROOM, work);
		crc ^= crc32_gzip_refl(0, pages + unit * UNIT, UNIT);
	}
	free(work);
	return unused;
}

static void *decompress(void *unused)
{
	for (long unit; take(&unit, 1);)
		decompress_unit(packed + unit * ROOM, length[unit], unpacked + unit * UNIT);
	return unused;
}

static void *read_units(void *unused)
{
	unsigned char *room = memory(BATCH * ROOM);
	for (long first, count; (count = take(&first, BATCH));) {
		long bytes = place[first + count] - place[first];
		check(pread(file, room, bytes, place[first]) == bytes, "pread");
		for (long unit = first; unit < first + count; unit++)
			decompress_unit(room + place[unit] - place[first] + 8, length[unit], unpacked + unit * UNIT);
	}
	free(room);
	return unused;
}

// Rooms that are free, and those that wait to be written, as a writer of an image has them.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct { unsigned char *bytes; long count, at; } queue[ROOMS];
static unsigned char *rooms[ROOMS];
static long nr_free, first_queued, last_queued, all_queued, end_of_file, allocated;

// Units as an image has them: each with its length before it, in whole pages. Their bytes are returned.
static long pack_units(long first, long count, unsigned char *room, void *work)
{
	long stored = 0;
	for (long unit = first; unit < first + count; unit++) {
		uint64_t bytes = compress_unit(pages + unit * UNIT, room + stored + 8, work);
		crc ^= crc32_gzip_refl(0, pages + unit * UNIT, UNIT);
		memcpy(room + stored, &bytes, 8);
		long end = stored + 8 + bytes;
		stored = (end + PAGE - 1) / PAGE * PAGE;
		memset(room + end, 0, stored - end);
	}
	return stored;
}

static void *pack(void *unused)
{
	void *work = malloc(LZO1X_1_MEM_COMPRESS);
	for (long first, count; (count = take(&first, BATCH));) {
		pthread_mutex_lock(&lock);
		while (!nr_free)
			pthread_cond_wait(&changed, &lock);
		unsigned char *room = rooms[--nr_free];
		pthread_mutex_unlock(&lock);
		long stored = pack_units(first, count, room, work);
		pthread_mutex_lock(&lock);
		queue[last_queued % ROOMS].bytes = room;
		queue[last_queued % ROOMS].count = stored;
		queue[last_queued++ % ROOMS].at = end_of_file;
		end_of_file += stored;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	}
	free(work);
	return unused;
}

static int write_one(void)
{
	pthread_mutex_lock(&lock);
	while (first_queued == last_queued && !all_queued)
		pthread_cond_wait(&changed, &lock);
	if (first_queued == last_queued) {
		pthread_mutex_unlock(&lock);
		return 0;
	}
	unsigned char *room = queue[first_queued % ROOMS].bytes;
	long count = queue[first_queued % ROOMS].count, at = queue[first_queued++ % ROOMS].at;
	for (; at + count > allocated; allocated += AHEAD)
		check(fallocate(file, 0, allocated, AHEAD) == 0, "fallocate");
	pthread_mutex_unlock(&lock);
	check(pwrite(file, room, count, at) == count, "pwrite");
	pthread_mutex_lock(&lock);
	rooms[nr_free++] = room;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	return 1;
}

static void *write_queued(void *unused)
{
	while (write_one())
		;
	return unused;
}

static void *pack_and_write(void *unused)
{
	void *work = malloc(LZO1X_1_MEM_COMPRESS);
	unsigned char *room = memory(BATCH * (ROOM + PAGE));
	for (long first, count; (count = take(&first, BATCH));) {
		long stored = pack_units(first, count, room, work);
		pthread_mutex_lock(&lock);
		long at = end_of_file;
		end_of_file += stored;
		for (; end_of_file > allocated; allocated += AHEAD)
			check(fallocate(file, 0, allocated, AHEAD) == 0, "fallocate");
		pthread_mutex_unlock(&lock);
		check(pwrite(file, room, stored, at) == stored, "pwrite");
	}
	free(room);
	free(work);
	return unused;
}

static void on_threads(void *(*work)(void *), long count, pthread_t *threads)
{
	for (long thread = 0; thread < count; thread++)
		check(pthread_create(threads + thread, NULL, work, NULL) == 0, "pthread_create");
}

static void join(long count, pthread_t *threads)
{
	for (long thread = 0; thread < count; thread++)
		pthread_join(threads[thread], NULL);
}

static void run(const char *name, void *(*work)(void *), long threads, const char *out)
{
	pthread_t started[64], writing[WRITERS];
	struct timespec begin, end;
	if (out && work != read_units)
		unlink(out);
	next_unit = first_queued = last_queued = all_queued = end_of_file = allocated = 0;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (work == read_units)
		check((file = open(out, O_RDONLY)) >= 0, "open");
	else if (out) {
		check((file = open(out, O_RDWR | O_CREAT | O_DIRECT, 0600)) >= 0, "open");
		check(ftruncate(file, units * UNIT) == 0, "ftruncate");
	}
	on_threads(work, threads, started);
	if (work == pack)
		on_threads(write_queued, WRITERS, writing);
	join(threads, started);
	if (work == pack) {
		pthread_mutex_lock(&lock);
		all_queued = 1;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
		join(WRITERS, writing);
	}
	if (out && work != read_units)
		check(ftruncate(file, end_of_file) == 0 && fsync(file) == 0, "fsync");
	if (out)
		close(file);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%s %.6f\n", name, end.tv_sec - begin.tv_sec + 1e-9 * (end.tv_nsec - begin.tv_nsec));
	fflush(stdout);
}

// The file to be read.
static void make_stream(const char *path)
{
	static const char zeroes[PAGE];
	FILE *stream = fopen(path, "wb");
	check(stream != NULL, path);
	for (long unit = 0; unit < units; unit++) {
		uint64_t bytes = length[unit];
		long rest = -(8 + bytes) & (PAGE - 1);
		fwrite(&bytes, 8, 1, stream);
		fwrite(packed + unit * ROOM, 1, bytes, stream);
		fwrite(zeroes, 1, rest, stream);
		place[unit + 1] = place[unit] + 8 + bytes + rest;
	}
	check(fclose(stream) == 0, path);
}

int main(int argc, char **argv)
{
	struct stat status;
	char stream[4096];
	if (argc != 5 || (strcmp(argv[1], "lzo") && strcmp(argv[1], "lz4"))) {
		fprintf(stderr, "usage: images (lzo|lz4) PAGES OUT ROUNDS\n");
		return 2;
	}
	with_lz4 = !strcmp(argv[1], "lz4");
	cores = sysconf(_SC_NPROCESSORS_ONLN) < 60 ? sysconf(_SC_NPROCESSORS_ONLN) : 60;
	check(lzo_init() == LZO_E_OK, "lzo_init");
	int source = open(argv[2], O_RDONLY);
	check(source >= 0 && fstat(source, &status) == 0, argv[2]);
	units = status.st_size / UNIT;
	pages = memory(units * UNIT);
	packed = memory(units * ROOM);
	unpacked = memory(units * UNIT);
	length = calloc(units, sizeof *length);
	place = calloc(units + 1, sizeof *place);
	for (long unit = 0; unit < units; unit++)
		check(pread(source, pages + unit * UNIT, UNIT, unit * UNIT) == UNIT, argv[2]);
	for (nr_free = 0; nr_free < ROOMS; nr_free++)
		rooms[nr_free] = memory(BATCH * (ROOM + PAGE));
	for (long round = 0; round < atol(argv[4]); round++) {
		run("compress", compress, cores, NULL);
		if (!round) {
			snprintf(stream, sizeof stream, "%s.stream", argv[3]);
			make_stream(stream);
		}
		run("write", pack, cores, argv[3]);
		run("write-alike", pack_and_write, cores + WRITERS, argv[3]);
		run("decompress", decompress, cores, NULL);
		run("read", read_units, cores, stream);
	}
	check(memcmp(pages, unpacked, units * UNIT) == 0, "pages differ");
	unlink(stream);
	unlink(argv[3]);
	return 0;
}
