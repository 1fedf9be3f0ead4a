/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy loop of swsusp_save over pages that the direct map does not show, as far as allocations and page tables go:
 * what benchmarks/explore.py compares hibernaut's exploration of real page tables with.
 *
 * A machine has 1 to REGIONS regions out of its direct map, each one entry of 2 MiB or of 1 GiB, and the table with that
 * entry lies below all regions or above them. Of 2 MiB two pages are to be saved, of 1 GiB three: two in its first
 * block and one in another. Pages are copied in ascending order: tables below, regions, tables above.
 *
 * Remap makes a page present before it is copied. That splits large entries, and each split needs a page, which may not
 * be there. It is taken from those that were free when the list of pages was fixed, so that it is not on the list.
 *
 * -DREGIONS=n: at most so many regions. -DHISTORY: no two runs are one state, so that every run has an end of its own.
 * Each end is printed: the machine, the way, and what is wrong.
 */

#ifndef REGIONS
#define REGIONS 2
#endif

/* Ways. */
#define REMAP 0		/* a failure is ignored: the page, not present, is read all the same */
#define REMAP_GENERIC 1	/* on a failure the page is skipped */
#define FIXMAP 2	/* nothing is allocated, no entry of the direct map is touched */

byte way, regions;
bool gib[REGIONS];		/* its entry is one of 1 GiB */
bool above[REGIONS];		/* the table that holds its entry lies above the regions */

bool pud_split[REGIONS];	/* the 1 GiB entry names a table now */
bool pmd_split[2 * REGIONS];	/* the 2 MiB entry of the first block, of the other one */
bool saved_split[REGIONS];	/* in the saved copy of the region's table its entry names a table */
bool slot;			/* the fixmap slot is in use */

bool died, torn, skipped;	/* no-fault, tables-closed, every-listed-page are broken */

bool ok;
byte region, page;
#ifdef HISTORY
int history = 1;
#endif

inline alloc_page()
{
	if
	:: ok = true
	:: ok = false
	fi;
#ifdef HISTORY
	history = 2 * history + ok;
#endif
}

/* set_direct_map_default_noflush: ok says whether it worked. */
inline split(which)
{
	ok = true;
	if
	:: gib[region] && !pud_split[region] -> alloc_page(); pud_split[region] = ok
	:: else
	fi;
	if
	:: ok && !pmd_split[which] -> alloc_page(); pmd_split[which] = ok
	:: else
	fi
}

/* copy_data_page for one page of a region. */
inline copy_page()
{
	if
	:: way == FIXMAP ->
		assert(!slot);
		slot = true;	/* set_fixmap */
		slot = false	/* clear_fixmap */
	:: else ->
		split(2 * region + (page == 2));
		if
		:: ok	/* copied, and made not present again: a 4K entry by now */
		:: !ok && way == REMAP -> died = true
		:: !ok && way == REMAP_GENERIC -> skipped = true
		fi
	fi;
	ok = false
}

inline copy_tables(which)
{
	region = 0;
	do
	:: region < regions ->
		if
		:: above[region] == which ->
			saved_split[region] = (gib[region] -> pud_split[region] : pmd_split[2 * region])
		:: else
		fi;
		region++
	:: else -> break
	od;
	region = 0
}

active proctype swsusp_save()
{
	atomic {
		if
		:: way = REMAP
		:: way = REMAP_GENERIC
		:: way = FIXMAP
		fi;
		select(regions : 1 .. REGIONS);
		do
		:: region < regions ->
			if
			:: gib[region] = true
			:: gib[region] = false
			fi;
			if
			:: above[region] = true
			:: above[region] = false
			fi;
			region++
		:: else -> break
		od
	}
	atomic { copy_tables(false) }
	do
	:: atomic {
		region < regions && !died ->
		copy_page();
		page++;
		if
		:: page == (gib[region] -> 3 : 2) -> page = 0; region++
		:: else
		fi
	   }
	:: region == regions || died -> break
	od;
	atomic {
		if
		:: !died ->
			copy_tables(true);
			/* The resumed machine's tables are those copies; what they name was never saved. */
			do
			:: region < regions -> torn = torn || saved_split[region]; region++
			:: else -> break
			od
		:: else
		fi
	}
	assert(way != FIXMAP || !(died || torn || skipped));
	c_code {
		int at;
		printf("END %d", now.way);
		for (at = 0; at < now.regions; at++)
			printf(" %s:%s", now.gib[at] ? "1g" : "2m", now.above[at] ? "above" : "below");
		printf(" %d%d%d\n", now.died, now.torn, now.skipped);
	}
}
