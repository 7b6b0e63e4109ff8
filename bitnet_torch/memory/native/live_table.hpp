// Blocks that are alive, found by their address.
//
// A row takes the place of the one that ended last, so a few lines of the cache serve memory that
// comes and goes, and blocks lie where they would lie untracked: nothing is asked of malloc between
// them. The index is searched linearly and at most half full. Its slots carry the hash, so that a
// search looks at no row but the right one; when an entry ends, later ones move up.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using i64 = int64_t;
using i32 = int32_t;

// The layout is that of the ctypes structure in native_library.py. A free row has `kFree` bytes, and
// `number` is the next free one.
struct Row {
  i64 address, nbytes, number, born;
  i32 module, op, stack, unused;
};

class LiveTable {
 public:
  LiveTable() { clear(); }

  void clear() {
    rows_.clear();
    slots_.assign(kLeast, Slot{});
    size_ = 0;
    free_ = kNone;
  }

  size_t size() const { return size_; }

  // Returns the row of an address, nullptr if there is none; it stays valid until the next `add`.
  Row* find(i64 address) {
    const size_t at = slot_of(address);
    return slots_[at].row == kNone ? nullptr : &rows_[slots_[at].row];
  }

  // Enters a row, whose address must not be there.
  void add(const Row& row) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    uint32_t place = free_;
    if (place == kNone) {
      place = static_cast<uint32_t>(rows_.size());
      rows_.push_back(row);
    } else {
      free_ = static_cast<uint32_t>(rows_[place].number);
      rows_[place] = row;
    }
    slots_[slot_of(row.address)] = {hash(row.address), place};
    ++size_;
  }

  // Removes the row of an address that is there.
  void remove(i64 address) {
    size_t hole = slot_of(address);
    Row& row = rows_[slots_[hole].row];
    row.nbytes = kFree;
    row.number = free_;
    free_ = slots_[hole].row;
    --size_;
    const size_t mask = slots_.size() - 1;
    // An entry moves up unless its search begins after the hole.
    for (size_t at = (hole + 1) & mask; slots_[at].row != kNone; at = (at + 1) & mask) {
      const size_t begin = slots_[at].hash & mask;
      if (((at - begin) & mask) < ((at - hole) & mask)) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = Slot{};
  }

  template <typename Visit>
  void each(Visit visit) const {
    for (const Row& row : rows_)
      if (row.nbytes != kFree) visit(row);
  }

  size_t bytes() const { return rows_.capacity() * sizeof(Row) + slots_.capacity() * sizeof(Slot); }

 private:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  static constexpr i64 kFree = -1;
  static constexpr size_t kLeast = 16;

  struct Slot {
    uint32_t hash = 0, row = kNone;
  };

  static uint32_t hash(i64 address) {
    return static_cast<uint32_t>((static_cast<uint64_t>(address) * 0x9E3779B97F4A7C15ull) >> 32);
  }

  // Returns where an address is, or where it would be entered.
  size_t slot_of(i64 address) const {
    const uint32_t wanted = hash(address);
    const size_t mask = slots_.size() - 1;
    size_t at = wanted & mask;
    while (slots_[at].row != kNone &&
           !(slots_[at].hash == wanted && rows_[slots_[at].row].address == address))
      at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    const size_t mask = slots_.size() - 1;
    for (const Slot& slot : old) {
      if (slot.row == kNone) continue;
      size_t at = slot.hash & mask;
      while (slots_[at].row != kNone) at = (at + 1) & mask;
      slots_[at] = slot;
    }
  }

  std::vector<Row> rows_;
  std::vector<Slot> slots_;
  size_t size_ = 0;
  uint32_t free_ = kNone;
};

}  // namespace
