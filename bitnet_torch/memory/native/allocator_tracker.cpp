// Counts every byte of PyTorch's CPU allocator, from outside of PyTorch.
//
// A c10::Allocator that asks the one before it and keeps books: eager code, autograd's threads,
// compiled code and scratch inside kernels all pass through it. Blocks end through `finish`, whoever
// frees them and whenever, so uninstalling while blocks are alive is safe; the books are never
// destroyed, because a block may end after everything else.
//
// One mutex guards the books. No Python runs under it: a stack is gathered before it is taken, and
// only in threads that Python knows. Python watches thresholds by waiting, from a thread of its own.

#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "books.hpp"

#ifndef _WIN32
#include <pthread.h>
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT extern "C" __declspec(dllexport)
#endif

namespace {

c10::Allocator* before = nullptr;

// The operators that this thread is in, outermost first. They are asked for their names only when
// there is an allocation to name: most operators make none of their own. What is nested deeper than
// this counts for the last one that is kept.
constexpr int kDeepest = 64;
struct Running {
  const at::RecordFunction* ops[kDeepest];
  int depth;
};
constinit thread_local Running running{};

std::unique_ptr<at::ObserverContext> enter_op(const at::RecordFunction& fn) {
  Running& r = running;
  if (r.depth < kDeepest) r.ops[r.depth++] = &fn;
  return nullptr;
}

// Ends with it whatever began after it, so that none is kept that has ended.
void leave_op(const at::RecordFunction& fn, at::ObserverContext*) {
  Running& r = running;
  for (int at = r.depth; at-- > 0;) {
    if (r.ops[at] != &fn) continue;
    r.depth = at;
    return;
  }
}

// Operators that only fetch memory for another one, which is the one to name.
bool fetches_memory(std::string_view name) {
  return name.starts_with("aten::empty") || name.starts_with("aten::new_empty") ||
         name.starts_with("aten::resize_") || name.starts_with("aten::set_") ||
         name.starts_with("aten::zero_") || name.starts_with("aten::fill_");
}

const char* op_now() {
  const Running& r = running;
  const char* name = "";
  for (int at = r.depth; at-- > 0;) {
    name = r.ops[at]->name();
    if (!fetches_memory(name)) break;
  }
  return name;
}

i64 as_number(const void* address) { return reinterpret_cast<i64>(address); }

// Returns the number of the calling thread's stack, 0 if it has none. Takes the GIL.
i32 gather_stack(i32 depth) {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (thread == nullptr) return 0;
  const PyGILState_STATE held = PyGILState_Ensure();
  std::vector<Frame> stack;
  PyFrameObject* frame = PyThreadState_GetFrame(thread);
  while (frame != nullptr) {
    if (static_cast<i32>(stack.size()) < depth) {
#if PY_VERSION_HEX >= 0x030B0000
      stack.push_back({PyFrame_GetCode(frame), PyFrame_GetLasti(frame)});
#else
      stack.push_back({PyFrame_GetCode(frame), PyFrame_GetLineNumber(frame)});
#endif
    }
    PyFrameObject* back =
        static_cast<i32>(stack.size()) < depth ? PyFrame_GetBack(frame) : nullptr;
    Py_DECREF(frame);
    frame = back;
  }
  Books& b = books();
  auto [entry, fresh] = b.stack_ids.emplace(stack, static_cast<i32>(b.stacks.size()) + 1);
  if (fresh)
    b.stacks.push_back(&entry->first);  // keeps the references to the code
  else
    for (const Frame& f : stack) Py_DECREF(f.code);
  const i32 id = entry->second;
  PyGILState_Release(held);
  return id;
}

void begin(void* address, i64 nbytes) {
  Books& b = books();
  const i32 depth = b.stack_depth.load(std::memory_order_relaxed);
  const i32 stack = depth > 0 ? gather_stack(depth) : 0;
  const char* op = op_now();
  bool crossed = false;
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    if (!b.on) return;
    b.enter({as_number(address), nbytes, b.total.allocs + 1, now(), module_now, b.op_id(op), stack,
             0});
    if (!b.thresholds.empty()) crossed = b.check_thresholds();
  }
  if (crossed) b.crossed.notify_all();
}

void finish(void* address) {
  Books& b = books();
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    b.leave(as_number(address), 0);
  }
  // After the books: the address may be handed out again at once.
  before->raw_deallocate(address);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    void* address = before->raw_allocate(nbytes);
    if (address != nullptr) begin(address, static_cast<i64>(nbytes));
    return {address, address, &finish, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &finish; }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }
};

CountingAllocator* counting() {
  static CountingAllocator* a = new CountingAllocator();
  return a;
}

at::CallbackHandle op_callback = at::INVALID_CALLBACK_HANDLE;

#ifndef _WIN32
void lock_books() { books().mutex.lock(); }
void unlock_books() { books().mutex.unlock(); }
#endif

template <typename T, typename U>
i64 copy_out(const std::vector<T>& from, U* out, i64 room) {
  const i64 n = std::min<i64>(room, static_cast<i64>(from.size()));
  std::copy_n(from.begin(), n, out);
  return static_cast<i64>(from.size());
}

}  // namespace

// Returns 0, or 1 if it is installed already.
EXPORT int bitnet_install(i64 max_events, i32 stack_depth) {
  Books& b = books();
  static bool first = true;
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    if (b.on) return 1;
    b.live.clear();
    b.total = Tally();
    b.modules.clear();
    b.ops.clear();
    b.scopes.clear();
    b.events.clear();
    b.thresholds.clear();
    b.oldest = 0;
    b.dropped = b.crossings = 0;
    b.max_events = static_cast<size_t>(max_events);
    b.stack_depth = stack_depth;
    b.on = true;
  }
#ifndef _WIN32
  if (first) pthread_atfork(lock_books, unlock_books, unlock_books);
#endif
  first = false;
  op_callback = at::addGlobalCallback(
      at::RecordFunctionCallback(enter_op, leave_op)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  if (before == nullptr) before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(counting(), 100);
  return 0;
}

EXPORT void bitnet_uninstall() {
  Books& b = books();
  if (!b.on) return;
  // Somebody may have put an allocator of their own in front of ours since.
  if (c10::GetCPUAllocator() == counting()) c10::SetCPUAllocator(before, 100);
  at::removeCallback(op_callback);
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    b.on = false;
    b.stack_depth = 0;
  }
  b.crossed.notify_all();
}

EXPORT void bitnet_total(Tally* out, i64* dropped) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  *out = b.total;
  *dropped = b.dropped;
}

EXPORT int bitnet_knows(void* address) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return b.live.find(as_number(address)) != nullptr;
}

EXPORT void bitnet_reset_peak() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.total.peak = b.total.current;
  for (auto* tallies : {&b.modules, &b.ops})
    for (Tally& tally : *tallies) tally.peak = tally.current;
}

EXPORT i32 bitnet_set_module(i32 id) {
  const i32 old = module_now;
  module_now = id;
  return old;
}

EXPORT i32 bitnet_open_scope() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.scopes[++b.next_scope];
  return b.next_scope;
}

EXPORT void bitnet_read_scope(i32 id, Tally* out) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  *out = b.scopes[id];
}

EXPORT void bitnet_close_scope(i32 id) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.scopes.erase(id);
}

// The three readers return how many there are and write at most `room` of them.
EXPORT i64 bitnet_tallies(i32 of_ops, Tally* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return copy_out(of_ops ? b.ops : b.modules, out, room);
}

EXPORT i64 bitnet_live(Row* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  i64 n = 0;
  b.live.each([&](const Row& row) {
    if (n < room) out[n] = row;
    ++n;
  });
  return n;
}

EXPORT i64 bitnet_events(Event* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const i64 n = static_cast<i64>(b.events.size());
  for (i64 i = 0; i < std::min(n, room); ++i) out[i] = b.events[(b.oldest + i) % n];
  return n;
}

EXPORT i64 bitnet_op_name(i32 id, char* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const std::string& name = b.op_names[id];
  std::strncpy(out, name.c_str(), room);
  return static_cast<i64>(name.size());
}

// Enters a storage that is older than the books; returns its number.
EXPORT i64 bitnet_add(void* address, i64 nbytes, i32 module, const char* op) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const i64 number = b.total.allocs + 1;
  b.enter({as_number(address), nbytes, number, now(), module, b.op_id(op), 0, 0});
  return number;
}

EXPORT void bitnet_remove(void* address, i64 number) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.leave(as_number(address), number);
}

EXPORT void bitnet_set_thresholds(const i64* bytes, i64 n) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.thresholds.clear();
  for (i64 i = 0; i < n; ++i) b.thresholds.push_back({bytes[i], 0, b.total.current >= bytes[i]});
}

// How often each threshold has been crossed upwards since they were set.
EXPORT void bitnet_crossings(i64* out, i64 n) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  for (i64 i = 0; i < std::min(n, static_cast<i64>(b.thresholds.size())); ++i)
    out[i] = b.thresholds[i].crossings;
}

// Waits until there are more than `seen` crossings, tracking ends or `seconds` have passed; returns
// how many there are. Called without the GIL.
EXPORT i64 bitnet_wait_crossing(i64 seen, double seconds) {
  Books& b = books();
  std::unique_lock<std::mutex> guard(b.mutex);
  b.crossed.wait_for(guard, std::chrono::duration<double>(seconds),
                     [&] { return b.crossings > seen || !b.on; });
  return b.crossings;
}

// Bytes of the books themselves.
EXPORT i64 bitnet_overhead() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return static_cast<i64>(b.live.bytes() + b.events.capacity() * sizeof(Event));
}

// A list of (file, line, function), innermost first; called with the GIL.
EXPORT PyObject* bitnet_stack(i32 id) {
  const std::vector<Frame>& stack = *books().stacks[id - 1];
  PyObject* list = PyList_New(0);
  for (const Frame& f : stack) {
    PyObject* code = reinterpret_cast<PyObject*>(f.code);
    PyObject* file = PyObject_GetAttrString(code, "co_filename");
    PyObject* name = PyObject_GetAttrString(code, "co_name");
#if PY_VERSION_HEX >= 0x030B0000
    const int line = PyCode_Addr2Line(f.code, f.place);
#else
    const int line = f.place;
#endif
    PyObject* entry = file && name ? Py_BuildValue("(OiO)", file, line, name) : nullptr;
    Py_XDECREF(file);
    Py_XDECREF(name);
    const int failed = entry == nullptr || PyList_Append(list, entry);
    Py_XDECREF(entry);
    if (failed) {
      Py_DECREF(list);
      return nullptr;
    }
  }
  return list;
}
