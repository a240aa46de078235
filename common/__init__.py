"""What two or more folders use: files, flags, progress, pages, int8, loading."""
