/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A driver that takes `hold` pages when devices are frozen: after the kernel has allocated the pages of the image, and before
 * it copies. Drivers that do so are the reason for /sys/power/reserved_size.
 *
 * /proc/hlab_region reports: hold wanted=N taken=N
 */
#include <linux/platform_device.h>
#include <linux/pm.h>

static int hold;
module_param(hold, int, 0600);
static int taken;
static LIST_HEAD(held);

static int take_pages(struct device *device)
{
	while (taken < hold) {
		struct page *page = alloc_page(GFP_NOWAIT | __GFP_NOWARN);

		if (!page)
			break;
		list_add(&page->lru, &held);
		taken++;
	}
	pr_info("hlab_region: %d of %d pages taken while devices are frozen\n", taken, hold);
	return 0;
}

static const struct dev_pm_ops hold_pm = { .freeze = take_pages };
static struct platform_driver hold_driver = {
	.driver = { .name = "hlab_hold", .pm = &hold_pm },
};

static int start_hold(void)
{
	struct platform_device *device;
	int error = platform_driver_register(&hold_driver);

	if (error)
		return error;
	device = platform_device_register_simple("hlab_hold", -1, NULL, 0);
	if (!IS_ERR(device))
		return 0;
	platform_driver_unregister(&hold_driver);
	return PTR_ERR(device);
}

static void show_hold(struct seq_file *out)
{
	if (hold > 0)
		seq_printf(out, "hold wanted=%d taken=%d\n", hold, taken);
}
