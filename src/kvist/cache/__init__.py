"""The KV cache: the heart of kvist. It knows nothing of models, engines or requests beyond their names.

Who owns what::

    CacheManager          the one door; the only writer of page tables
     ├─ PageTable         one for each sequence, read by everybody, written by the manager
     ├─ PagePool          the arrays, addressed by page id; no idea who uses a page
     └─ PageLedger        what happens to single pages, counted and told
         ├─ PageAllocator page ids: free, cached or live; reference counts; eviction order; no arrays
         └─ PrefixIndex   content key -> page, for the sealed pages; no arrays
    PageLayout            where a number lies in a page, and every byte count
    Codec                 how a number is stored

Import from the modules themselves; this package pulls nothing in, so that planning needs no pool and starting no NumPy.
"""
