/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads that are not frozen, each caught by the copy between hiding the pages of a block and mapping them again.
 *
 * A thread is a work item of the system's workqueue, as the kernel's own that free executable memory are
 * (bpf_prog_free_deferred in kernel/bpf/core.c, delayed_vfree_work in mm/vmalloc.c): workers are never frozen, and that
 * queue is not WQ_FREEZABLE. It sleeps in its window, so that the copy meets it there for certain.
 *
 *   2m-thread  hides the block by one call for all of its pages, and sleeps until it may continue. Then it maps them by
 *              one call, reads them through the direct map, and frees them one by one.
 *   vfree      is the kernel's own vfree of an area with VM_FLUSH_RESET_PERMS whose pages are the block's. Between its
 *              two passes over the direct map it waits for vmap_purge_lock, which another work item holds.
 *
 * Written to /proc/hlab_region: "thread" starts the threads, and returns when each is in its window; "continue" lets
 * them map their pages; "free" lets them free the pages, and be the next user of those that the allocator gives them: it
 * clears them. On the machine that writes the image, the threads do all of this when its devices continue (`thaw`).
 *
 * A region's line has: thread=window, mapped, freed or used; error=E, of the calls; right=N, other=N and faults=N, pages
 * that it reads through the direct map with their own data, with other data, and not at all; used=N, pages of the block
 * that were allocated again, and cleared. Interrupts can take some before. Of `vfree`, nothing is read: the kernel frees
 * the pages as soon as they are mapped.
 *
 * Included by hlab_region.c, whose regions and entries it uses.
 */
#include <linux/delay.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/pm.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define MOST_CAUGHT 8
#define MOST_TAKEN 16384 /* pages allocated in search of those that were freed */
#define STAGE_TRIES 1000 /* of 10 ms, until a thread is where it has to be */

enum stage { NOT_STARTED, WINDOW, MAPPED, FREED, USED };

static const char *const stage_words[] = { "not-started", "window", "mapped", "freed", "used" };

static struct caught {
	struct work_struct work;
	struct region *region;
	void *area; /* of vfree */
	enum stage stage;
	int error, right, other, faults, used;
} threads[MOST_CAUGHT];
static int thread_count;

static DECLARE_WAIT_QUEUE_HEAD(moves);
static bool may_map, may_free;
static struct mutex *purge_lock;
static bool purge_lock_held;

static int (*call_valid_noflush)(struct page *page, unsigned int pages, bool valid);
static int (*call_set_memory_prot)(unsigned long start, int pages, pgprot_t prot);
static struct vm_struct *(*call_find_vm_area)(const void *address);

static void *find_function(const char *name);

/* Hides or maps a block by one call: PRESENT and RW of all pages. */
static int change_block(const struct region *region, bool valid)
{
	pgprot_t hidden = __pgprot(pgprot_val(PAGE_KERNEL) & ~(_PAGE_PRESENT | _PAGE_RW | _PAGE_DIRTY));

	if (call_valid_noflush)
		return call_valid_noflush(region->block, BLOCK_PAGES, valid);
	return call_set_memory_prot(address_of(region), BLOCK_PAGES, valid ? PAGE_KERNEL : hidden);
}

/* Reads the pages as the kernel does, through the direct map, whatever it maps them to. */
static void read_pages(struct caught *thread)
{
	int page;
	size_t i;

	for (page = 0; page < BLOCK_PAGES; page++) {
		u64 *word = (u64 *)(address_of(thread->region) + page * PAGE_SIZE), found;

		for (i = 0; i < WORDS; i++) {
			__get_kernel_nofault(&found, word + i, u64, fault);
			if (found != (MARK | __pa(word + i)))
				break;
		}
		if (i < WORDS)
			thread->other++;
		else
			thread->right++;
		continue;
fault:
		thread->faults++;
	}
}

/* The flag by which an allocation begins with the zone of a page. */
static gfp_t zone_flag(const struct page *page)
{
	switch (page_zonenum(page)) {
	case ZONE_DMA:
		return GFP_DMA;
	case ZONE_DMA32:
		return GFP_DMA32;
	default:
		return 0;
	}
}

/* The next users of the pages: allocates cleared pages until all of the block were among them. */
static void use_pages(struct caught *thread)
{
	unsigned long first = page_to_pfn(thread->region->block);
	gfp_t flags = GFP_NOWAIT | __GFP_NOWARN | __GFP_ZERO | zone_flag(thread->region->block);
	struct page *page, *next;
	LIST_HEAD(pages);
	int taken;

	for (taken = 0; thread->used < BLOCK_PAGES && taken < MOST_TAKEN; taken++) {
		page = alloc_page(flags);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		thread->used += page_to_pfn(page) - first < BLOCK_PAGES;
	}
	list_for_each_entry_safe(page, next, &pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	WRITE_ONCE(thread->stage, USED);
}

static void finish(struct caught *thread)
{
	WRITE_ONCE(thread->stage, FREED);
	wait_event_idle(moves, READ_ONCE(may_free)); /* of vfree, which frees at once */
	use_pages(thread);
	pr_info("hlab_region: thread block=0x%lx error=%d right=%d other=%d faults=%d used=%d\n",
		page_to_pfn(thread->region->block), thread->error, thread->right, thread->other, thread->faults,
		thread->used);
}

/* As a free does whose calls take all pages at once: errors are ignored, and the pages freed whatever they map to. */
static void free_block(struct work_struct *work)
{
	struct caught *thread = container_of(work, struct caught, work);
	struct region *region = thread->region;
	int page;

	thread->error = change_block(region, false);
	flush(address_of(region));
	WRITE_ONCE(thread->stage, WINDOW);
	wait_event_idle(moves, READ_ONCE(may_map));
	if (!thread->error)
		thread->error = change_block(region, true);
	read_pages(thread);
	WRITE_ONCE(thread->stage, MAPPED);
	wait_event_idle(moves, READ_ONCE(may_free));
	for (page = 0; page < BLOCK_PAGES; page++)
		__free_page(region->block + page);
	finish(thread);
}

static void free_area(struct work_struct *work)
{
	struct caught *thread = container_of(work, struct caught, work);

	vfree(thread->area);
	finish(thread);
}

static void hold_purge_lock(struct work_struct *work)
{
	mutex_lock(purge_lock);
	WRITE_ONCE(purge_lock_held, true);
	wait_event_idle(moves, READ_ONCE(may_map));
	mutex_unlock(purge_lock);
}

static DECLARE_WORK(holder, hold_purge_lock);

/* A vmalloc area of the block's pages, which vfree takes out of the direct map and back before it frees them. */
static void *make_area(const struct region *region)
{
	struct page **pages = kvcalloc(BLOCK_PAGES, sizeof(*pages), GFP_KERNEL);
	struct vm_struct *found;
	void *area = NULL;
	int i;

	for (i = 0; pages && i < BLOCK_PAGES; i++)
		pages[i] = region->block + i;
	if (pages)
		area = vmap(pages, BLOCK_PAGES, VM_MAP | VM_MAP_PUT_PAGES, PAGE_KERNEL);
	found = area ? call_find_vm_area(area) : NULL;
	if (!area)
		kvfree(pages);
	if (!found)
		return NULL;
	found->flags |= VM_FLUSH_RESET_PERMS;
	return area;
}

/* Whether the last page of the block is hidden: nothing but the wait for the lock is left of the first pass. */
static bool last_page_hidden(const struct region *region)
{
	unsigned long last = address_of(region) + (BLOCK_PAGES - 1) * PAGE_SIZE;
	u64 *entry = entry_at(last, PAGE_SHIFT);

	return entry && !(READ_ONCE(*entry) & _PAGE_PRESENT);
}

static bool got_there(struct caught *thread, enum stage stage)
{
	if (stage == WINDOW && thread->area && READ_ONCE(thread->stage) == NOT_STARTED &&
	    last_page_hidden(thread->region))
		WRITE_ONCE(thread->stage, WINDOW);
	return READ_ONCE(thread->stage) >= stage;
}

/* Waits until all threads are at a stage, or behind it. */
static int wait_for_threads(enum stage stage)
{
	int i, tries;

	wake_up_all(&moves);
	for (i = 0; i < thread_count; i++)
		for (tries = 0; !got_there(&threads[i], stage); tries++) {
			if (tries == STAGE_TRIES)
				return -ETIMEDOUT;
			msleep(10);
		}
	return 0;
}

static int find_thread_functions(bool areas)
{
	unsigned long (*lookup)(const char *name) = areas ? find_function("kallsyms_lookup_name") : NULL;

	call_valid_noflush = find_function("set_direct_map_valid_noflush");
	call_set_memory_prot = find_function("__set_memory_prot");
	call_find_vm_area = find_function("find_vm_area");
	purge_lock = lookup ? (struct mutex *)lookup("vmap_purge_lock") : NULL;
	if (areas)
		return purge_lock && call_find_vm_area ? 0 : -EOPNOTSUPP;
	return call_valid_noflush || call_set_memory_prot ? 0 : -EOPNOTSUPP;
}

static int begin_thread(struct region *region)
{
	struct caught *thread = &threads[thread_count];

	if (thread_count == MOST_CAUGHT)
		return -ENOSPC;
	split_page(region->block, BLOCK_ORDER);
	thread->region = region;
	if (region->kind == VFREE) {
		thread->area = make_area(region);
		if (!thread->area)
			return -ENOMEM;
	}
	region->thread = thread;
	thread_count++;
	INIT_WORK(&thread->work, thread->area ? free_area : free_block);
	schedule_work(&thread->work);
	return 0;
}

static int start_threads_of(enum kind kind)
{
	int i, error, found = 0;

	for (i = 0; i < region_count; i++)
		found += regions[i].kind == kind && !regions[i].thread;
	if (!found)
		return 0;
	error = find_thread_functions(kind == VFREE);
	if (!error && kind == VFREE && !READ_ONCE(purge_lock_held)) {
		schedule_work(&holder);
		while (!READ_ONCE(purge_lock_held))
			msleep(10);
	}
	for (i = 0; !error && i < region_count; i++)
		if (regions[i].kind == kind && !regions[i].thread)
			error = begin_thread(&regions[i]);
	return error ? error : wait_for_threads(WINDOW);
}

/* Those that hide by calls of their own first: these calls take the lock that the others wait for. */
static int start_threads(void)
{
	int error = start_threads_of(THREAD);

	return error ? error : start_threads_of(VFREE);
}

static int let_map(void)
{
	WRITE_ONCE(may_map, true);
	return wait_for_threads(MAPPED);
}

static int let_free(void)
{
	WRITE_ONCE(may_free, true);
	return wait_for_threads(USED);
}

/* The machine that writes the image continues: so do its threads. A resumed machine has `restore` called instead. */
static int continue_live(struct device *device)
{
	may_map = may_free = true;
	wake_up_all(&moves);
	return 0;
}

static const struct dev_pm_ops thread_pm = { .thaw = continue_live };
static struct platform_driver thread_driver = {
	.driver = { .name = "hlab_thread", .pm = &thread_pm },
};

static int watch_thaw(void)
{
	struct platform_device *device;
	int error = platform_driver_register(&thread_driver);

	if (error)
		return error;
	device = platform_device_register_simple("hlab_thread", -1, NULL, 0);
	if (!IS_ERR(device))
		return 0;
	platform_driver_unregister(&thread_driver);
	return PTR_ERR(device);
}

static void show_thread(struct seq_file *out, const struct caught *thread)
{
	seq_printf(out, " thread=%s error=%d right=%d other=%d faults=%d used=%d", stage_words[thread->stage],
		   thread->error, thread->right, thread->other, thread->faults, thread->used);
}
