// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Records the calls that the copy loop of swsusp_save makes, with the entry of the page that is being copied.
 *
 * Probes write into a buffer that is allocated beforehand, while interrupts are off. The buffer is read from outside,
 * while the guest is stopped or after it has crashed: the pages of the buffer are copied in the midst of the loop, so
 * that the resumed machine has an older state of it. hibernaut.lab.trace reads it.
 *
 * Included by hlab_region.c, whose entry_at() and splitter() it uses.
 */
#include <linux/kdebug.h>

#define TRACE_MAGIC 0x65636172746c6268ull
#define HELD_RETURNS 16

enum hit_kind {
	PAGE_PRESENT = 1, /* kernel_page_present is called: argument frame */
	DEFAULT, /* set_direct_map_default_noflush is called: argument frame */
	DEFAULT_RETURNS, /* result: its return value */
	INVALID, /* set_direct_map_invalid_noflush is called: argument frame */
	INVALID_RETURNS, /* result: its return value */
	ALLOCATED, /* a page for a split: result frame, 0 if there is none */
	FLUSH_ALL, /* flush_tlb_all is called */
	FLUSH_RANGE, /* flush_tlb_kernel_range is called: argument start, result end */
	CRASHED, /* result: the instruction */
};

struct hit {
	u64 kind;
	u64 argument;
	u64 result;
	u64 shift; /* address bits below the index of the entry that maps the page being copied, or would */
	u64 at; /* physical address of that entry, */
	u64 entry; /* and the entry */
	u64 above_at; /* the same one level up */
	u64 above;
};

struct trace_buffer {
	u64 magic;
	u64 count; /* hits; those beyond the capacity are not stored */
	u64 capacity;
	u64 record_bytes;
	struct hit hits[];
};

static int trace;
module_param(trace, int, 0444);
static struct trace_buffer *traced;
static bool tracing;
static unsigned long traced_pfn;
static const char *untraced = "";

static void look_up(unsigned long address, struct hit *hit)
{
	u64 *entry = NULL;
	int shift;

	for (shift = PAGE_SHIFT; shift <= PGDIR_SHIFT && !entry; shift += 9)
		entry = entry_at(address, shift);
	shift -= 9;
	if (!entry)
		return;
	hit->shift = shift;
	hit->at = __pa(entry);
	hit->entry = READ_ONCE(*entry);
	entry = shift < PUD_SHIFT ? entry_at(address, shift + 9) : NULL;
	if (!entry)
		return;
	hit->above_at = __pa(entry);
	hit->above = READ_ONCE(*entry);
}

static void record(enum hit_kind kind, u64 argument, u64 result)
{
	u64 number = traced->count++;
	struct hit *hit;

	if (number >= traced->capacity)
		return;
	hit = &traced->hits[number];
	memset(hit, 0, sizeof(*hit));
	hit->kind = kind;
	hit->argument = argument;
	hit->result = result;
	if (traced_pfn)
		look_up((unsigned long)page_address(pfn_to_page(traced_pfn)), hit);
}

static bool is_traced(const struct pt_regs *regs)
{
	return tracing && !(regs->flags & X86_EFLAGS_IF);
}

static int on_page_present(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_traced(regs)) {
		traced_pfn = page_to_pfn((struct page *)regs->di);
		record(PAGE_PRESENT, traced_pfn, 0);
	}
	return 0;
}

static int on_flush_all(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_traced(regs))
		record(FLUSH_ALL, 0, 0);
	return 0;
}

static int on_flush_range(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_traced(regs))
		record(FLUSH_RANGE, regs->di, regs->si);
	return 0;
}

static int on_default(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (!is_traced(regs))
		return 1;
	record(DEFAULT, page_to_pfn((struct page *)regs->di), 0);
	return 0;
}

static int after_default(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	record(DEFAULT_RETURNS, 0, (s64)(int)regs->ax);
	return 0;
}

static int on_invalid(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (!is_traced(regs))
		return 1;
	record(INVALID, page_to_pfn((struct page *)regs->di), 0);
	return 0;
}

static int after_invalid(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	record(INVALID_RETURNS, 0, (s64)(int)regs->ax);
	return 0;
}

static int on_traced_allocation(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	static char caller[KSYM_SYMBOL_LEN];

	return !is_traced(regs) || !splitter(regs, caller);
}

static int after_traced_allocation(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	record(ALLOCATED, 0, regs->ax ? page_to_pfn((struct page *)regs->ax) : 0);
	return 0;
}

static struct kprobe traced_calls[] = {
	{ .symbol_name = "kernel_page_present", .pre_handler = on_page_present },
	{ .symbol_name = "flush_tlb_all", .pre_handler = on_flush_all },
	{ .symbol_name = "flush_tlb_kernel_range", .pre_handler = on_flush_range },
};

static struct kretprobe traced_returns[] = {
	{ .kp.symbol_name = "set_direct_map_default_noflush", .entry_handler = on_default, .handler = after_default,
	  .maxactive = HELD_RETURNS },
	{ .kp.symbol_name = "set_direct_map_invalid_noflush", .entry_handler = on_invalid, .handler = after_invalid,
	  .maxactive = HELD_RETURNS },
	/* Registered after the probe that makes allocations fail: it sees their result. */
	{ .entry_handler = on_traced_allocation, .handler = after_traced_allocation, .maxactive = HELD_RETURNS },
};

/* A crash ends the recording: what the kernel does afterwards is not the loop. */
static int on_die(struct notifier_block *block, unsigned long event, void *data)
{
	struct die_args *args = data;

	if (event == DIE_OOPS && tracing && !(args->regs->flags & X86_EFLAGS_IF)) {
		record(CRASHED, 0, args->regs->ip);
		tracing = false;
	}
	return NOTIFY_DONE;
}

static struct notifier_block die_block = { .notifier_call = on_die };

/* Allocates the buffer and places the probes; the first function that cannot be probed is reported. */
static int start_trace(const char *allocation)
{
	size_t i;

	traced = vzalloc(struct_size(traced, hits, trace));
	if (!traced)
		return -ENOMEM;
	traced->magic = TRACE_MAGIC;
	traced->capacity = trace;
	traced->record_bytes = sizeof(struct hit);
	traced_returns[ARRAY_SIZE(traced_returns) - 1].kp.symbol_name = allocation;
	for (i = 0; i < ARRAY_SIZE(traced_calls) && !*untraced; i++)
		if (register_kprobe(&traced_calls[i]))
			untraced = traced_calls[i].symbol_name;
	for (i = 0; i < ARRAY_SIZE(traced_returns) && !*untraced; i++)
		if (register_kretprobe(&traced_returns[i]))
			untraced = *allocation ? traced_returns[i].kp.symbol_name : "allocation";
	register_die_notifier(&die_block);
	tracing = true;
	return 0;
}

static void show_trace(struct seq_file *out)
{
	if (traced)
		seq_printf(out, "trace buffer=0x%lx capacity=%d untraced=%s\n", (unsigned long)traced, trace,
			   *untraced ? untraced : "nothing");
}
