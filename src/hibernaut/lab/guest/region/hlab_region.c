// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Takes regions out of the direct map, as a kernel does, and reports their state.
 *
 *   make=SIZE:ORDER[*N][,...]   N regions of a kind, one if there is no N.
 *                           SIZE 2m: a 2 MiB block, one not-present PMD entry. 4k: one page of such a block. 4k-pair:
 *                           two neighbouring pages of one. none: one page whose entry is zero, in an existing table. none-2m: a block whose PMD entry is zero,
 *                           so that no table has an entry for its pages. 1g: a block of 1 GiB, one not-present PUD
 *                           entry. 2m-thin: a 2 MiB block, of which the first page alone has data and is saved.
 *                           2m-thread: a 2 MiB block that a thread hides and maps again before it frees it; vfree: one
 *                           that the kernel's vfree hides, page by page (hlab_thread.h)
 *                           ORDER above, below or any: position of the PMD table relative to the block; for 1g, of the PUD
 *                           table. Pages are saved in ascending order, so "above" means that the table is saved after
 *                           the split it undergoes.
 *                           Regions of one ORDER get blocks as they are listed, the lowest block first.
 *   seed=N                  random choice among the blocks that fit. 0: the first one found
 *   allocator=NAME          function that the page for a split is allocated with, to count its calls
 *   skip=N                  the first N allocations for a split during the copy succeed,
 *   fail=N                  the next N fail
 *   trace=N                 record the calls of the copy loop in a buffer of N hits (hlab_trace.h)
 *   hold=N                  a driver that takes N pages when devices are frozen (hlab_hold.h)
 *
 * /proc/hlab_region reports, one line each, KEY=VALUE. Written there: "arm" or "disarm" starts or stops the counting;
 * "control" provokes two splits, of which the first must fail and the second succeed: whether the probe saw them is
 * reported; "thread", "continue" and "free" move the threads (hlab_thread.h); "owner" does on every 4k region what an owner does that restores PRESENT alone, as KFENCE, and writes;
 * "make=SIZE:ORDER" makes one more region.
 * Every page of a block holds, as u64, its own physical addresses, marked in the top 12 bits: a page in the wrong place
 * identifies the frame that it comes from (hibernaut.linux.formula). Of a 1g region, the first two blocks and the last
 * one have data; the pages of the others are PageOffline, which hibernation does not save: a guest is fast, and two
 * blocks of one table of 2 MiB entries are split all the same. So are the pages of a 2m-thin region but for its first.
 *
 * The module cannot be unloaded: the regions cannot be restored, and the guest is discarded.
 */
#include <linux/io.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 14, 0)
#define CPU_LISTS(zone) ((zone)->pageset)
#else
#define CPU_LISTS(zone) ((zone)->per_cpu_pageset)
#endif

#define BLOCK_ORDER 9
#define BLOCK_PAGES (1 << BLOCK_ORDER)
#define MOST_BLOCKS 8192
#define MOST_REGIONS 4096
#define GIB_PAGES (1 << 18)
#define GIB_BLOCKS (GIB_PAGES / BLOCK_PAGES)
#define MOST_GIBS 64
#define WORDS (PAGE_SIZE / sizeof(u64))
#define STACK_WORDS 96 /* of the stack at an allocation, in which the return address into a split is searched */
#define MARK (0xa5cull << 52)
#define FRAME_BITS GENMASK_ULL(51, 12)
#define ANY -1
#define LONE_PAGE 7 /* of a block, for a hole of one page or an entry that is zero */

static char *make = "";
module_param(make, charp, 0444);
static char *allocator = "";
module_param(allocator, charp, 0444);
static int skip;
module_param(skip, int, 0444);
static int fail;
module_param(fail, int, 0444);
static ulong seed;
module_param(seed, ulong, 0444);

enum kind { WHOLE, PAGE, PAIR, ZERO, NO_TABLE, GIB, THIN, THREAD, VFREE };

static const struct {
	const char *word;
	enum kind kind;
} kinds[] = {
	{ "2m:", WHOLE }, { "4k:", PAGE },	    { "4k-pair:", PAIR },
	{ "none:", ZERO }, { "none-2m:", NO_TABLE }, { "1g:", GIB },    { "2m-thin:", THIN },
	{ "2m-thread:", THREAD }, { "vfree:", VFREE },
};

static struct region {
	char wish[16];
	enum kind kind;
	int above; /* the table's side; ANY for either */
	struct page *block;
	const char *owner; /* result of its owner's write; NULL before it */
	struct caught *thread; /* that frees it; NULL before it starts */
} regions[MOST_REGIONS];
static int region_count;
static bool armed, controlling;
static int allocations, failures, open_allocations;
static int control_failed, control_seen, control_error = -ENODATA;

static int (*call_set_memory_np)(unsigned long start, int pages);
static int (*call_set_memory_4k)(unsigned long start, int pages);

/* ---- page tables, read as the CPU reads them ---- */

static u64 frame_bits(u64 entry)
{
	/* A not-present entry holds its frame inverted. */
	return (entry && !(entry & _PAGE_PRESENT) ? ~entry : entry) & FRAME_BITS;
}

/*
 * The entry of an address at a level, given by the number of address bits below its index; NULL if a higher level maps
 * the address or has no table for it.
 */
static u64 *entry_at(unsigned long address, int level_shift)
{
	unsigned long cr3, cr4;
	u64 *table, entry;
	int shift;

	asm volatile("mov %%cr3, %0" : "=r"(cr3));
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	table = __va(cr3 & FRAME_BITS);
	for (shift = cr4 & X86_CR4_LA57 ? 48 : 39; shift > level_shift; shift -= 9) {
		entry = table[address >> shift & 511];
		if (!(entry & _PAGE_PRESENT) || (shift <= PUD_SHIFT && entry & _PAGE_PSE))
			return NULL;
		table = __va(entry & FRAME_BITS);
	}
	return &table[address >> level_shift & 511];
}

/* Whether single pages with entries of their own are out of the direct map. */
static bool is_lone(const struct region *region)
{
	return region->kind == PAGE || region->kind == PAIR;
}

static int pages_of(const struct region *region)
{
	return region->kind == GIB ? GIB_PAGES : BLOCK_PAGES;
}

/* The entry that maps the whole block of a region, or the table of its parts. */
static u64 *entry_of(const struct region *region)
{
	return entry_at((unsigned long)page_address(region->block), region->kind == GIB ? PUD_SHIFT : PMD_SHIFT);
}

/* The frame that a kernel address is mapped to, 0 for none. */
static u64 frame_of(unsigned long address)
{
	int shift;

	for (shift = PAGE_SHIFT; shift <= PUD_SHIFT; shift += 9) {
		u64 *entry = entry_at(address, shift);

		if (entry && (*entry & _PAGE_PRESENT))
			return ((*entry & FRAME_BITS & -(1ull << shift)) | (address & ((1ull << shift) - 1))) >> PAGE_SHIFT;
	}
	return 0;
}

static bool is_table(u64 entry)
{
	return (entry & _PAGE_PRESENT) && !(entry & _PAGE_PSE);
}

static unsigned long address_of(const struct region *region)
{
	return (unsigned long)page_address(region->block);
}

/* ---- making a region ---- */

static bool fits(struct page *block, int above, int level_shift)
{
	u64 *entry = entry_at((unsigned long)page_address(block), level_shift);

	if (above == ANY && !entry)
		/* A part of a larger page, which is split when the block is taken out. */
		entry = entry_at((unsigned long)page_address(block), PUD_SHIFT);
	if (!entry || !(*entry & _PAGE_PRESENT) || !(*entry & _PAGE_PSE))
		return false;
	return above == ANY || (__pa(entry) >> PAGE_SHIFT > page_to_pfn(block)) == above;
}

/* A random number below a bound, the same for the same seed on every kernel (xorshift64). */
static u64 draw(u64 below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

/* Blocks that were taken and fit no region yet: each is looked at once, however many regions are wanted. */
static struct page *spare[MOST_BLOCKS];
static int spare_count;

static void free_spare(void)
{
	while (spare_count)
		__free_pages(spare[--spare_count], BLOCK_ORDER);
}

static struct page *fitting_spare(int above)
{
	int i, fitting = 0, chosen = -1;

	for (i = 0; i < spare_count; i++)
		if (fits(spare[i], above, PMD_SHIFT) && (seed ? !draw(++fitting) : chosen < 0))
			chosen = i;
	if (chosen < 0)
		return NULL;
	swap(spare[chosen], spare[spare_count - 1]);
	return spare[--spare_count];
}

/*
 * A free block whose PMD table is on the wanted side, searched from the lowest zone up: the first one, or with a seed a
 * random one of all that exist, each with equal probability.
 */
static struct page *take_block(int above)
{
	static const gfp_t zones[] = { GFP_DMA, GFP_DMA32, 0 };
	struct page *block = seed ? NULL : fitting_spare(above);
	size_t i;

	if (block)
		return block;
	for (i = 0; i < ARRAY_SIZE(zones); i++) {
		while (spare_count < MOST_BLOCKS) {
			block = alloc_pages(GFP_KERNEL | zones[i] | __GFP_NOWARN | __GFP_NORETRY, BLOCK_ORDER);
			if (!block)
				break;
			if (!seed && fits(block, above, PMD_SHIFT))
				return block;
			spare[spare_count++] = block;
		}
	}
	block = seed ? fitting_spare(above) : NULL;
	if (seed)
		free_spare();
	return block;
}

/*
 * A free block of 1 GiB that one entry maps: all blocks that can be had are taken, those of the first GiB that is
 * complete are kept.
 */
static struct page *take_gib(int above)
{
	struct page **taken = kvcalloc(MOST_BLOCKS, sizeof(*taken), GFP_KERNEL);
	struct page *block, *found = NULL;
	static int blocks_of[MOST_GIBS];
	int count = 0, i;

	free_spare();
	memset(blocks_of, 0, sizeof(blocks_of));
	while (taken && !found && count < MOST_BLOCKS) {
		unsigned long gib;

		block = alloc_pages(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, BLOCK_ORDER);
		if (!block)
			break;
		taken[count++] = block;
		gib = page_to_pfn(block) / GIB_PAGES;
		if (gib < MOST_GIBS && ++blocks_of[gib] == GIB_BLOCKS &&
		    fits(pfn_to_page(gib * GIB_PAGES), above, PUD_SHIFT))
			found = pfn_to_page(gib * GIB_PAGES);
	}
	for (i = 0; i < count; i++)
		if (!found || page_to_pfn(taken[i]) / GIB_PAGES != page_to_pfn(found) / GIB_PAGES)
			__free_pages(taken[i], BLOCK_ORDER);
	kvfree(taken);
	return found;
}

/* Whether a page of a region has data. */
static bool has_data(const struct region *region, int page)
{
	int block = page / BLOCK_PAGES;

	if (region->kind == THIN)
		return !page;
	return region->kind != GIB || block < 2 || block == GIB_BLOCKS - 1;
}

static void fill(const struct region *region)
{
	size_t i;
	int page;

	for (page = 0; page < pages_of(region); page++) {
		u64 *word = page_address(region->block + page);

		if (!has_data(region, page)) {
			__SetPageOffline(region->block + page);
			continue;
		}
		for (i = 0; i < WORDS; i++)
			word[i] = MARK | __pa(word + i);
	}
}

static int add_region(const char *wish)
{
	struct region *region = &regions[region_count];
	size_t i;

	region->above = strstr(wish, ":any") ? ANY : !!strstr(wish, ":above");
	if (!region->above && !strstr(wish, ":below"))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strstarts(wish, kinds[i].word))
			break;
	if (i == ARRAY_SIZE(kinds))
		return -EINVAL;
	region->kind = kinds[i].kind;
	strscpy(region->wish, wish, sizeof(region->wish));
	region->block = region->kind == GIB ? take_gib(region->above) : take_block(region->above);
	if (!region->block)
		return -ENXIO;
	region_count++;
	return 0;
}

/* Blocks come in no order: assign them again, the lowest to the first region of each ORDER. */
static void sort_blocks(void)
{
	int i, j;

	for (i = 0; i < region_count; i++)
		for (j = i + 1; j < region_count; j++)
			if (regions[i].above == regions[j].above && pages_of(&regions[i]) == pages_of(&regions[j]) &&
			    page_to_pfn(regions[i].block) > page_to_pfn(regions[j].block))
				swap(regions[i].block, regions[j].block);
}

static void flush(unsigned long address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

/* Clears a not-present entry. No TLB has it, but the flush spares the reader that argument. */
static int clear_entry(unsigned long address, int level_shift)
{
	u64 *entry = entry_at(address, level_shift);

	if (!entry || *entry & _PAGE_PRESENT)
		return -ENOENT;
	WRITE_ONCE(*entry, 0);
	flush(address);
	return 0;
}

static unsigned long lone_page(const struct region *region)
{
	return address_of(region) + LONE_PAGE * PAGE_SIZE;
}

static int take_out(const struct region *region)
{
	int error;

	fill(region);
	switch (region->kind) {
	case WHOLE:
	case THIN:
	case GIB:
		return call_set_memory_np(address_of(region), pages_of(region));
	case NO_TABLE:
		error = call_set_memory_np(address_of(region), BLOCK_PAGES);
		return error ? error : clear_entry(address_of(region), PMD_SHIFT);
	case ZERO:
		error = call_set_memory_np(lone_page(region), 1);
		return error ? error : clear_entry(lone_page(region), PAGE_SHIFT);
	case THREAD:
	case VFREE:
		return 0; /* its thread takes it out */
	default:
		return call_set_memory_np(lone_page(region), region->kind == PAIR ? 2 : 1);
	}
}

/* ---- the owner of a page ---- */

/*
 * What an owner does that clears and sets PRESENT alone, as KFENCE: set it, flush, write. The write can fault: it
 * stores the word that is there already, and the entry is not present again afterwards.
 */
static void act_as_owner(struct region *region)
{
	unsigned long address = lone_page(region);
	u64 *entry = entry_at(address, PAGE_SHIFT), *word = (u64 *)address, stored = MARK | __pa(address), was;

	region->owner = "no-entry";
	if (!entry || !*entry || *entry & _PAGE_PRESENT)
		return;
	was = *entry;
	WRITE_ONCE(*entry, (was & ~FRAME_BITS) | frame_bits(was) | _PAGE_PRESENT);
	flush(address);
	region->owner = "faults";
	__put_kernel_nofault(word, &stored, u64, restore);
	region->owner = "writes";
restore:
	WRITE_ONCE(*entry, was);
	flush(address);
}

static const char *splitter(const struct pt_regs *regs, char *name);

/* ---- the calls of the copy loop ---- */

#include "hlab_trace.h"
#include "hlab_hold.h"
#include "hlab_thread.h"

/* ---- the report ---- */

/*
 * A digest (FNV-1a) of everything in entries but their frames and the bits that the CPU sets: ACCESSED, and DIRTY where
 * a write is possible.
 */
static u64 digest_of_rights(const u64 *entries, int count)
{
	u64 digest = 0xcbf29ce484222325ull;
	int i, byte;

	for (i = 0; i < count; i++) {
		u64 entry = READ_ONCE(entries[i]), rights = entry & ~(FRAME_BITS | _PAGE_ACCESSED);

		if ((entry & _PAGE_PRESENT) && (entry & _PAGE_RW))
			rights &= ~_PAGE_DIRTY;
		for (byte = 0; byte < 8; byte++)
			digest = (digest ^ (rights >> 8 * byte & 0xff)) * 0x100000001b3ull;
	}
	return digest;
}

/* The entries below the one that maps the block of a region, or that one alone if it has no table. */
static void show_entries(struct seq_file *out, const struct region *region, const u64 *whole)
{
	int step = pages_of(region) / BLOCK_PAGES, i, present = 0, hidden = 0, none = 0, wrong = 0;
	u64 first = page_to_pfn(region->block), entry = READ_ONCE(*whole);
	const u64 *entries = is_table(entry) ? __va(entry & FRAME_BITS) : whole;
	int count = is_table(entry) ? BLOCK_PAGES : 1;

	for (i = 0; i < count; i++) {
		entry = READ_ONCE(entries[i]);
		if (!entry)
			none++;
		else if (step > 1 && is_table(entry))
			present++; /* a table of smaller pages: the kernel has split this part */
		else if (frame_bits(entry) >> PAGE_SHIFT != first + i * step)
			wrong++;
		else if (entry & _PAGE_PRESENT)
			present++;
		else
			hidden++;
	}
	step = BLOCK_PAGES / count;
	seq_printf(out, " level=%s present=%d hidden=%d none=%d wrong=%d rights=0x%016llx",
		   region->kind == GIB ? (count > 1 ? "2m" : "1g") : (count > 1 ? "4k" : "2m"), present * step,
		   hidden * step, none * step, wrong * step, digest_of_rights(entries, count));
}

/* Reads the data through a separate mapping, since the direct map is under test. */
static int damaged_pages(const struct region *region)
{
	struct page **frames = kvcalloc(BLOCK_PAGES, sizeof(*frames), GFP_KERNEL);
	int first, page, bad = 0;
	size_t i;

	for (first = 0; frames && first < pages_of(region); first += BLOCK_PAGES) {
		u64 *word;

		if (!has_data(region, first))
			continue;
		for (page = 0; page < BLOCK_PAGES; page++)
			frames[page] = region->block + first + page;
		word = vmap(frames, BLOCK_PAGES, VM_MAP, PAGE_KERNEL);
		if (!word)
			break;
		for (page = 0; page < BLOCK_PAGES; page++, word += WORDS) {
			if (!has_data(region, first + page))
				continue;
			for (i = 0; i < WORDS; i++)
				if (word[i] != (MARK | page_to_phys(frames[page]) | i * sizeof(u64)))
					break;
			bad += i < WORDS;
		}
		vunmap(word - BLOCK_PAGES * WORDS);
	}
	kvfree(frames);
	return first < pages_of(region) ? -1 : bad;
}

/* Frames that the allocator changes when it gives the reader a page. */
static void show_allocator(struct seq_file *out)
{
	struct page *page = alloc_page(GFP_KERNEL);
	struct zone *zone;

	if (!page)
		return;
	zone = page_zone(page);
	seq_printf(out, "allocator free=0x%lx mem-map=0x%llx zone=0x%llx pcp=0x%llx\n", page_to_pfn(page),
		   frame_of((unsigned long)page), frame_of((unsigned long)zone),
		   frame_of((unsigned long)raw_cpu_ptr(CPU_LISTS(zone))));
	__free_page(page);
}

static int show(struct seq_file *out, void *unused)
{
	int i;

	seq_printf(out, "module armed=%d skip=%d fail=%d allocations=%d failures=%d regions=%d\n", armed, skip, fail,
		   allocations, failures, region_count);
	if (control_error != -ENODATA)
		seq_printf(out, "control failed=%d seen=%d error=%d\n", control_failed, control_seen, control_error);
	show_allocator(out);
	show_trace(out);
	show_hold(out);
	for (i = 0; i < region_count; i++) {
		struct region *region = &regions[i];
		u64 *entry = entry_of(region);

		seq_printf(out, "region wish=%s block=0x%lx address=0x%lx", region->wish, page_to_pfn(region->block),
			   address_of(region));
		if (entry) {
			seq_printf(out, " table=0x%lx pmd=0x%016llx", __pa(entry) >> PAGE_SHIFT, *entry);
			show_entries(out, region, entry);
		}
		if (is_lone(region) || region->kind == ZERO) {
			entry = entry_at(lone_page(region), PAGE_SHIFT);
			seq_printf(out, " lone=0x%016llx", entry ? READ_ONCE(*entry) : 0);
		}
		if (region->owner)
			seq_printf(out, " owner=%s", region->owner);
		if (region->thread)
			show_thread(out, region->thread);
		if (region->thread && region->thread->stage >= FREED)
			seq_putc(out, '\n'); /* the pages belong to their next users */
		else
			seq_printf(out, " damaged=%d\n", damaged_pages(region));
	}
	return 0;
}

static int open_report(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

/*
 * Splits a block twice: the first time its allocation must fail, the second time it must not. The probe must count both.
 * Nothing but the size of the block's entries is changed.
 */
static int provoke_splits(void)
{
	struct page *block = take_block(false);
	unsigned long address;
	int refused, done;

	if (!call_set_memory_4k)
		return -EOPNOTSUPP;
	if (!block)
		block = take_block(true);
	free_spare();
	if (!block)
		return -ENOMEM;
	address = (unsigned long)page_address(block);
	control_failed = control_seen = 0;
	controlling = true;
	refused = call_set_memory_4k(address, 1);
	done = call_set_memory_4k(address, 1);
	controlling = false;
	__free_pages(block, BLOCK_ORDER);
	return !refused ? -EEXIST : done;
}

/* Makes one more region. */
static int make_one(const char *wish)
{
	int error = region_count < MOST_REGIONS ? add_region(wish) : -ENOSPC;

	free_spare();
	return error ? error : take_out(&regions[region_count - 1]);
}

/* Moves the threads on by one word. */
static int move_threads(const char *word)
{
	if (!strcmp(word, "thread"))
		return start_threads();
	if (!strcmp(word, "continue"))
		return let_map();
	return strcmp(word, "free") ? -EINVAL : let_free();
}

static ssize_t control(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char word[48] = "";
	int i, error;

	if (copy_from_user(word, text, min(size, sizeof(word) - 1)))
		return -EFAULT;
	if (!strncmp(word, "arm", 3))
		armed = true;
	else if (!strncmp(word, "disarm", 6))
		armed = false;
	else if (!strncmp(word, "control", 7))
		control_error = provoke_splits();
	else if (!strncmp(word, "owner", 5))
		for (i = 0; i < region_count; i++) {
			if (is_lone(&regions[i]))
				act_as_owner(&regions[i]);
		}
	else if (!strncmp(word, "make=", 5)) {
		error = make_one(strim(word) + 5);
		if (error)
			return error;
	} else {
		error = move_threads(strim(word));
		if (error)
			return error;
	}
	return size;
}

static const struct proc_ops report_ops = {
	.proc_open = open_report,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = control,
};

/* ---- allocations during the copy ---- */

/* A probe can send the CPU here in place of the probed function. */
static noinline notrace void *return_null(void)
{
	return NULL;
}

/* Parts of the names of functions that split; a compiler inlines some of them, and gives others a suffix. */
static const char *const splitters[] = { "split_large_page", "change_page_attr", "set_direct_map", "set_memory_4k" };

/*
 * The function that changes page attributes and made this allocation, as its return address on the stack says; NULL
 * if none did. Between the two may be several functions, some of them inlined.
 */
static const char *splitter(const struct pt_regs *regs, char *name)
{
	const unsigned long *word = (const unsigned long *)regs->sp;
	const unsigned long *end = (const unsigned long *)(ALIGN(regs->sp + 1, THREAD_SIZE));
	size_t at;
	int i;

	for (i = 0; i < STACK_WORDS && word + i < end; i++) {
		if (word[i] < __START_KERNEL_map || !sprint_symbol_no_offset(name, word[i]))
			continue;
		for (at = 0; at < ARRAY_SIZE(splitters); at++)
			if (strstr(name, splitters[at]))
				return name;
	}
	return NULL;
}

/*
 * The copy runs with interrupts off, and nothing else in it changes page attributes. Where an allocation had to reclaim
 * memory, it continues with interrupts enabled: system_state tells it from the rest of the kernel's life.
 */
static int on_allocation(struct kprobe *probe, struct pt_regs *regs)
{
	static char caller[KSYM_SYMBOL_LEN];
	bool fails, open = regs->flags & X86_EFLAGS_IF;

	if (!controlling && (!armed || (open && system_state != SYSTEM_SUSPEND)))
		return 0;
	if (!splitter(regs, caller))
		return 0;
	if (controlling) {
		fails = !control_failed;
		control_failed += fails;
		control_seen += !fails;
	} else {
		fails = allocations >= skip && failures < fail;
		allocations++;
		failures += fails;
		open_allocations += open;
		pr_info("hlab_region: allocation %d for a split, from %s%s%s\n", allocations, caller,
			open ? ", interrupts enabled" : "", fails ? ": failure injected" : "");
	}
	if (!fails)
		return 0;
	regs->ip = (unsigned long)return_null;
	return 1;
}

/* Without a post handler, a probe may be optimized to a jump, after which a change of the instruction pointer is lost. */
static void after_allocation(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe allocation_probe = { .pre_handler = on_allocation, .post_handler = after_allocation };

/* The address of a function that is not exported. */
static void *find_function(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	/* A probe stands behind ENDBR64, which a function begins with where the kernel has indirect branch tracking. */
	if (!memcmp(address - 4, "\xf3\x0f\x1e\xfa", 4))
		address -= 4;
	return address;
}

/* Adds the regions of one word of `make`. */
static int add_regions(char *wish)
{
	char *times = strchr(wish, '*');
	unsigned int count = 1;
	int error = 0;

	if (times) {
		*times++ = 0;
		if (kstrtouint(times, 10, &count))
			return -EINVAL;
	}
	while (!error && count--)
		error = region_count < MOST_REGIONS ? add_region(wish) : -ENOSPC;
	return error;
}

static int __init hlab_region_init(void)
{
	char *wishes = kstrdup(make, GFP_KERNEL), *rest = wishes, *wish;
	int error = 0, i;

	call_set_memory_np = find_function("set_memory_np");
	call_set_memory_4k = find_function("set_memory_4k");
	if (!call_set_memory_np || !wishes) {
		pr_err("hlab_region: this kernel has no set_memory_np\n");
		kfree(wishes);
		return -ENOENT;
	}
	while (!error && (wish = strsep(&rest, ",")))
		if (*wish)
			error = add_regions(wish);
	kfree(wishes);
	free_spare();
	sort_blocks();
	for (i = 0; !error && i < region_count; i++)
		error = take_out(&regions[i]);
	if (!error && *allocator) {
		allocation_probe.symbol_name = allocator;
		error = register_kprobe(&allocation_probe);
	}
	if (!error && trace > 0)
		error = start_trace(allocator);
	if (!error)
		error = start_hold();
	if (!error)
		error = watch_thaw();
	/* After a failure, blocks with holes are not freed: the guest is discarded anyway. */
	if (!error && !proc_create("hlab_region", 0600, NULL, &report_ops)) {
		error = -ENOMEM;
		if (*allocator)
			unregister_kprobe(&allocation_probe);
	}
	return error;
}
module_init(hlab_region_init);

MODULE_DESCRIPTION("Parts of the direct map that are not present, for a hibernation laboratory");
MODULE_LICENSE("GPL");
