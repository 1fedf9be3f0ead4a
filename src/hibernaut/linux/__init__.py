"""What Linux does with page tables: the direct map, attribute changes, the page allocator, the fixmap, a machine."""
