"""What two or more folders use: files, flags, progress, tables, intervals, int8, loading."""
