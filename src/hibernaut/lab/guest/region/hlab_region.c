// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Takes regions out of the direct map, as a kernel does, and reports their state.
 *
 *   make=SIZE:ORDER[,...]   SIZE 2m: a 2 MiB block, one not-present PMD entry. 4k: one page of such a block. none: one
 *                           page whose entry is zero, in an existing table.
 *                           ORDER above or below: position of the PMD table relative to the block. Pages are saved in
 *                           ascending order, so "above" means that the table is saved after the split it undergoes.
 *                           Regions of one ORDER get blocks as they are listed, the lowest block first.
 *   seed=N                  random choice among the blocks that fit. 0: the first one found
 *   allocator=NAME          function that split_large_page() allocates its page with, to count its calls
 *   fail=N                  the first N allocations for a split during the copy fail
 *
 * /proc/hlab_region reports, one line each, KEY=VALUE; writing "arm" or "disarm" there starts or stops the counting.
 * Every page of a block holds, as u64, its own physical addresses, marked in the top 12 bits: a page in the wrong place
 * identifies the frame that it comes from (hibernaut.linux.formula).
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
#include <linux/vmalloc.h>

#define BLOCK_ORDER 9
#define BLOCK_PAGES (1 << BLOCK_ORDER)
#define MOST_BLOCKS 4096
#define MOST_REGIONS 16
#define WORDS (PAGE_SIZE / sizeof(u64))
#define MARK (0xa5cull << 52)
#define FRAME_BITS GENMASK_ULL(51, 12)
#define LONE_PAGE 7 /* of a block, for a hole of one page or an entry that is zero */

static char *make = "";
module_param(make, charp, 0444);
static char *allocator = "";
module_param(allocator, charp, 0444);
static int fail;
module_param(fail, int, 0444);
static ulong seed;
module_param(seed, ulong, 0444);

enum kind { WHOLE, PAGE, ZERO };

static const struct {
	const char *word;
	enum kind kind;
} kinds[] = { { "2m:", WHOLE }, { "4k:", PAGE }, { "none:", ZERO } };

static struct region {
	char wish[16];
	enum kind kind;
	bool above;
	struct page *block;
} regions[MOST_REGIONS];
static int region_count;
static bool armed;
static int allocations, failures;

static int (*call_set_memory_np)(unsigned long start, int pages);

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

static u64 *pmd_entry(unsigned long address)
{
	return entry_at(address, PMD_SHIFT);
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

static bool fits(struct page *block, bool above)
{
	u64 *entry = pmd_entry((unsigned long)page_address(block));

	if (!entry || !(*entry & _PAGE_PRESENT) || !(*entry & _PAGE_PSE))
		return false;
	return (__pa(entry) >> PAGE_SHIFT > page_to_pfn(block)) == above;
}

/* A random number below a bound, the same for the same seed on every kernel (xorshift64). */
static u64 draw(u64 below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

/*
 * A free block whose PMD table is on the wanted side, searched from the lowest zone up: the first one, or with a seed a
 * random one of all that exist, each with equal probability.
 */
static struct page *take_block(bool above)
{
	static const gfp_t zones[] = { GFP_DMA, GFP_DMA32, 0 };
	struct page **taken = kvcalloc(MOST_BLOCKS, sizeof(*taken), GFP_KERNEL);
	struct page *block, *found = NULL;
	int count = 0, fitting = 0;
	size_t i;

	for (i = 0; taken && i < ARRAY_SIZE(zones); i++) {
		while ((seed || !found) && count < MOST_BLOCKS) {
			block = alloc_pages(GFP_KERNEL | zones[i] | __GFP_NOWARN | __GFP_NORETRY, BLOCK_ORDER);
			if (!block)
				break;
			if (fits(block, above) && (!seed || !draw(++fitting)))
				swap(block, found);
			if (block)
				taken[count++] = block;
		}
	}
	while (count--)
		__free_pages(taken[count], BLOCK_ORDER);
	kvfree(taken);
	return found;
}

static void fill(unsigned long start)
{
	u64 *word = (u64 *)start;
	size_t i;

	for (i = 0; i < BLOCK_PAGES * WORDS; i++)
		word[i] = MARK | __pa(word + i);
}

static int add_region(const char *wish)
{
	struct region *region = &regions[region_count];
	size_t i;

	region->above = strstr(wish, ":above");
	if (!region->above && !strstr(wish, ":below"))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strstarts(wish, kinds[i].word))
			break;
	if (i == ARRAY_SIZE(kinds))
		return -EINVAL;
	region->kind = kinds[i].kind;
	strscpy(region->wish, wish, sizeof(region->wish));
	region->block = take_block(region->above);
	if (!region->block)
		return -ENOMEM;
	region_count++;
	return 0;
}

/* Blocks come in no order: assign them again, the lowest to the first region of each ORDER. */
static void sort_blocks(void)
{
	int i, j;

	for (i = 0; i < region_count; i++)
		for (j = i + 1; j < region_count; j++)
			if (regions[i].above == regions[j].above &&
			    page_to_pfn(regions[i].block) > page_to_pfn(regions[j].block))
				swap(regions[i].block, regions[j].block);
}

/* Clears the entry of a not-present page. No TLB has it, but the flush spares the reader that argument. */
static int clear_entry(unsigned long address)
{
	u64 *pmd = pmd_entry(address), *table;

	if (!pmd || !is_table(*pmd))
		return -ENOENT;
	table = __va(*pmd & FRAME_BITS);
	WRITE_ONCE(table[address >> PAGE_SHIFT & 511], 0);
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
	return 0;
}

static int take_out(const struct region *region)
{
	unsigned long address = address_of(region), lone = address + LONE_PAGE * PAGE_SIZE;
	int error;

	fill(address);
	if (region->kind == WHOLE)
		return call_set_memory_np(address, BLOCK_PAGES);
	error = call_set_memory_np(lone, 1);
	return error || region->kind == PAGE ? error : clear_entry(lone);
}

/* ---- the report ---- */

static void show_entries(struct seq_file *out, struct region *region, u64 pmd)
{
	u64 first = page_to_pfn(region->block), *table;
	int i, present = 0, hidden = 0, none = 0, wrong = 0;

	if (is_table(pmd)) {
		table = __va(pmd & FRAME_BITS);
		for (i = 0; i < BLOCK_PAGES; i++) {
			u64 entry = READ_ONCE(table[i]);

			if (!entry)
				none++;
			else if (frame_bits(entry) >> PAGE_SHIFT != first + i)
				wrong++;
			else if (entry & _PAGE_PRESENT)
				present++;
			else
				hidden++;
		}
	} else if (!pmd) {
		none = BLOCK_PAGES;
	} else if (frame_bits(pmd) >> PAGE_SHIFT != first) {
		wrong = BLOCK_PAGES;
	} else if (pmd & _PAGE_PRESENT) {
		present = BLOCK_PAGES;
	} else {
		hidden = BLOCK_PAGES;
	}
	seq_printf(out, " level=%s present=%d hidden=%d none=%d wrong=%d", is_table(pmd) ? "4k" : "2m", present, hidden,
		   none, wrong);
}

/* Reads the data through a separate mapping, since the direct map is under test. */
static int damaged_pages(struct region *region)
{
	int page, bad = 0;

	for (page = 0; page < BLOCK_PAGES; page++) {
		struct page *frame = region->block + page;
		u64 *word = vmap(&frame, 1, VM_MAP, PAGE_KERNEL);
		size_t i;

		if (!word)
			return -1;
		for (i = 0; i < WORDS; i++)
			if (word[i] != (MARK | page_to_phys(frame) | i * sizeof(u64)))
				break;
		bad += i < WORDS;
		vunmap(word);
	}
	return bad;
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
		   frame_of((unsigned long)raw_cpu_ptr(zone->per_cpu_pageset)));
	__free_page(page);
}

static int show(struct seq_file *out, void *unused)
{
	int i;

	seq_printf(out, "module armed=%d fail=%d allocations=%d failures=%d regions=%d\n", armed, fail, allocations,
		   failures, region_count);
	show_allocator(out);
	for (i = 0; i < region_count; i++) {
		struct region *region = &regions[i];
		u64 *entry = pmd_entry(address_of(region));

		seq_printf(out, "region wish=%s block=0x%lx address=0x%lx", region->wish, page_to_pfn(region->block),
			   address_of(region));
		if (entry) {
			seq_printf(out, " table=0x%lx pmd=0x%016llx", __pa(entry) >> PAGE_SHIFT, *entry);
			show_entries(out, region, READ_ONCE(*entry));
		}
		seq_printf(out, " damaged=%d\n", damaged_pages(region));
	}
	return 0;
}

static int open_report(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static ssize_t control(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char word[8] = "";

	if (copy_from_user(word, text, min(size, sizeof(word) - 1)))
		return -EFAULT;
	if (!strncmp(word, "arm", 3))
		armed = true;
	else if (!strncmp(word, "disarm", 6))
		armed = false;
	else
		return -EINVAL;
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

/* The copy runs with interrupts off, and nothing else in it changes page attributes. */
static int on_allocation(struct kprobe *probe, struct pt_regs *regs)
{
	char caller[KSYM_SYMBOL_LEN];

	if (!armed || regs->flags & X86_EFLAGS_IF)
		return 0;
	sprint_symbol_no_offset(caller, *(unsigned long *)regs->sp);
	if (!strstr(caller, "change_page_attr") && !strstr(caller, "split_large_page"))
		return 0;
	allocations++;
	if (failures >= fail)
		return 0;
	failures++;
	pr_info("hlab_region: allocation %d for a split, from %s: failure injected\n", allocations, caller);
	regs->ip = (unsigned long)return_null;
	return 1;
}

static struct kprobe allocation_probe = { .pre_handler = on_allocation };

/* The address of a function that is not exported. */
static void *find_function(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static int __init hlab_region_init(void)
{
	char *wishes = kstrdup(make, GFP_KERNEL), *rest = wishes, *wish;
	int error = 0, i;

	call_set_memory_np = find_function("set_memory_np");
	if (!call_set_memory_np || !wishes) {
		pr_err("hlab_region: this kernel has no set_memory_np\n");
		kfree(wishes);
		return -ENOENT;
	}
	while (!error && (wish = strsep(&rest, ",")))
		if (*wish && region_count < MOST_REGIONS)
			error = add_region(wish);
	kfree(wishes);
	sort_blocks();
	for (i = 0; !error && i < region_count; i++)
		error = take_out(&regions[i]);
	if (!error && *allocator) {
		allocation_probe.symbol_name = allocator;
		error = register_kprobe(&allocation_probe);
	}
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
