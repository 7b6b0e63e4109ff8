// What runtime.cpp offers to kernels: where a thread stands, and how it waits for others.
#pragma once
extern "C" {
struct mh_position {
    uint in_grid[3], in_group[3], group[3], groups[3], group_size[3], grid[3], full_group_size[3];
    uint index, lane, simdgroup, simdgroups;
};
extern mh_position* mh_current;
// Publish `size` bytes and wait for the simdgroup. Returns the 32 slots of 64 bytes, of which `active` says which took
// part, and scratch memory for what the lanes compute together: the first of them sets `scratch[0]`.
const char* mh_exchange(const void* value, uint size, int operation, int line, uint* active, char** scratch);
void mh_barrier(int line);
void mh_fail(const char* what, int line);
}
