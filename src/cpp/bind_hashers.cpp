// The hasher types of _core, on the C API of Python: a short message is hashed in less time than pybind11 takes to make
// an object. The classes of aisec_fast.hashing add names and documentation; what a forced backend other than ours is to
// hash goes to their portable subclasses.
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "aisec_fast/hashing_state.hpp"
#include "bind.hpp"
#include "hashing.hpp"

namespace aisec_fast {
namespace {

namespace py = pybind11;

constexpr std::size_t keeps_lock = 4096;                   // bytes that are hashed sooner than the GIL is passed on
constexpr std::size_t one_thread = std::size_t{1} << 18;   // fewer bytes than this have no use for a second thread
constexpr std::size_t slice_bytes = std::size_t{1} << 26;  // between two looks for signals
constexpr std::uint64_t most_sha256_bytes = (std::uint64_t{1} << 61) - 1;

struct Blake3Algorithm {
  static constexpr const char* name = "blake3";
  static constexpr std::size_t words = blake3_state_words;
  static inline PyObject *public_type = nullptr, *portable_type = nullptr;
};

struct Sha256Algorithm {
  static constexpr const char* name = "sha256";
  static constexpr std::size_t words = 26;
  static inline PyObject *public_type = nullptr, *portable_type = nullptr;
};

PyObject* forced_backend = nullptr;   // the context variable of aisec_fast.use_backend
std::vector<PyObject*> number_types;  // numpy's dtypes of numbers: those that most arrays have, known by their address

template <class Algorithm>
struct State {
  std::size_t limit;  // most threads of a call; 0: no limit
  Blake3Leaf leaf;
  std::uint32_t words[Algorithm::words];
};

template <class Algorithm>
struct Hasher {
  PyObject_HEAD std::mutex mutex;      // kernels run without the GIL
  std::atomic<unsigned long> looking;  // the thread that looks for signals and holds the mutex meanwhile
  State<Algorithm> state;
};

template <class Algorithm>
Hasher<Algorithm>* cast(PyObject* self) {
  return reinterpret_cast<Hasher<Algorithm>*>(self);
}

// --- Arguments -------------------------------------------------------------------------------------------------------

// A function of aisec_fast that says, better than we could, what is wrong with an argument.
PyObject* python_function(const char* module, const char* name) {
  PyObject* found = PyImport_ImportModule(module);
  if (found == nullptr) return nullptr;
  PyObject* function = PyObject_GetAttrString(found, name);
  Py_DECREF(found);
  return function;
}

// The memory of an object with the buffer protocol, held until the end.
class Bytes {
 public:
  Bytes() = default;
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() {
    if (held_) PyBuffer_Release(&view_);
  }

  const unsigned char* data() const { return data_; }
  std::size_t size() const { return size_; }

  // False with an error of Python.
  bool take(PyObject* object, const char* name) {
    if (PyBytes_CheckExact(object)) {
      data_ = reinterpret_cast<const unsigned char*>(PyBytes_AS_STRING(object));
      size_ = static_cast<std::size_t>(PyBytes_GET_SIZE(object));
      return true;
    }
    if (plain(object) && hold(object)) return true;
    PyErr_Clear();
    PyObject* function = python_function("aisec_fast.hashing._hashers", "as_bytes");
    if (function == nullptr) return false;
    PyObject* array = PyObject_CallFunction(function, "Os", object, name);
    Py_DECREF(function);
    if (array == nullptr) return false;
    const bool taken = hold(array);
    Py_DECREF(array);  // the buffer keeps it alive
    return taken;
  }

 private:
  bool hold(PyObject* object) {
    held_ = PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) == 0;
    if (!held_) return false;
    data_ = static_cast<const unsigned char*>(view_.buf);
    size_ = static_cast<std::size_t>(view_.len);
    return true;
  }

  // Whether the object's items cannot be references to others. Everything else is looked at in Python.
  static bool plain(PyObject* object) {
    if (PyByteArray_CheckExact(object)) return true;
    if (PyMemoryView_Check(object)) {
      const char* format = PyMemoryView_GET_BUFFER(object)->format;
      return format == nullptr || std::strchr(format, 'O') == nullptr;
    }
    if (std::strcmp(Py_TYPE(object)->tp_name, "numpy.ndarray") != 0) return false;
    static PyObject* const dtype_name = PyUnicode_InternFromString("dtype");
    PyObject* dtype = PyObject_GetAttr(object, dtype_name);
    if (dtype == nullptr) return false;
    bool none = std::find(number_types.begin(), number_types.end(), dtype) != number_types.end();
    if (!none) {
      PyObject* has_object = PyObject_GetAttrString(dtype, "hasobject");
      none = has_object == Py_False;
      Py_XDECREF(has_object);
    }
    Py_DECREF(dtype);
    return none;
  }

  Py_buffer view_{};
  bool held_ = false;
  const unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
};

// An int of at least `least`; false with an error of Python.
bool whole(PyObject* object, const char* name, int least, std::uint64_t& value) {
  if (PyLong_CheckExact(object)) {
    value = PyLong_AsUnsignedLongLong(object);
    if (!PyErr_Occurred() && value >= static_cast<std::uint64_t>(least)) return true;
    PyErr_Clear();
  }
  PyObject* function = python_function("aisec_fast._checks", "whole");
  if (function == nullptr) return false;
  PyObject* arguments = Py_BuildValue("(Os)", object, name);
  PyObject* named = Py_BuildValue("{s:i}", "least", least);
  PyObject* checked = arguments && named ? PyObject_Call(function, arguments, named) : nullptr;
  Py_DECREF(function);
  Py_XDECREF(arguments);
  Py_XDECREF(named);
  if (checked == nullptr) return false;
  value = PyLong_AsUnsignedLongLong(checked);
  Py_DECREF(checked);
  if (!PyErr_Occurred()) return true;
  PyErr_Clear();
  value = std::numeric_limits<std::uint64_t>::max();  // a number beyond all limits
  return true;
}

// Whether the backend that is forced, by use_backend or the environment, is another than ours; -1 with an error.
int elsewhere() {
  PyObject* forced = nullptr;
  if (forced_backend != nullptr && PyContextVar_Get(forced_backend, nullptr, &forced) < 0) return -1;
  int other = -1;
  if (forced != nullptr && forced != Py_None)
    other = PyUnicode_Check(forced) && PyUnicode_CompareWithASCIIString(forced, "native") == 0 ? 0 : 1;
  Py_XDECREF(forced);
  if (other >= 0) return other;
  const char* variable =
      std::getenv("AISEC_FAST_BACKEND");  // NOLINT(concurrency-mt-unsafe): Python sets it under the GIL
  return variable != nullptr && *variable != '\0' && std::strcmp(variable, "native") != 0;
}

// --- The state -------------------------------------------------------------------------------------------------------

// Without the GIL for as long as it lives.
class Unlocked {
 public:
  Unlocked() : thread_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { PyEval_RestoreThread(thread_); }

 private:
  PyThreadState* thread_;
};

// The hasher's mutex, waited for without the GIL.
template <class Algorithm>
class Turn {
 public:
  explicit Turn(PyObject* self) : hasher_(*cast<Algorithm>(self)) {
    taken_ = hasher_.mutex.try_lock();
    if (taken_) return;
    if (hasher_.looking == PyThread_get_thread_ident()) {  // we would wait for ourselves
      PyErr_SetString(PyExc_RuntimeError, "the hasher is in use: a signal interrupted its update on this thread");
      return;
    }
    const Unlocked unlocked;
    hasher_.mutex.lock();
    taken_ = true;
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    if (taken_) hasher_.mutex.unlock();
  }

  explicit operator bool() const { return taken_; }

  // Runs the handlers of signals; false with an error of Python, KeyboardInterrupt for one.
  bool look() {
    hasher_.looking = PyThread_get_thread_ident();
    const bool fine = PyErr_CheckSignals() == 0;
    hasher_.looking = 0;
    return fine;
  }

 private:
  Hasher<Algorithm>& hasher_;
  bool taken_;
};

bool has_room(const State<Blake3Algorithm>& state, std::size_t size) {
  const Blake3State known(const_cast<std::uint32_t*>(state.words));
  return size / blake3_chunk_bytes + 1 < blake3_most_chunks - known.chunks();
}

bool has_room(const State<Sha256Algorithm>& state, std::size_t size) {
  const std::uint64_t total = std::uint64_t{state.words[8]} | std::uint64_t{state.words[9]} << 32;
  return total <= most_sha256_bytes && size <= most_sha256_bytes - total;
}

const char* most_bytes(const State<Blake3Algorithm>&) { return "2^64 - 1"; }
const char* most_bytes(const State<Sha256Algorithm>&) { return "2^61 - 1"; }

void absorb(State<Blake3Algorithm>& state, const unsigned char* data, std::size_t size) {
  blake3_update(state.words, data, size, state.limit, &state.leaf);
}

void absorb(State<Sha256Algorithm>& state, const unsigned char* data, std::size_t size) {
  sha256_update(state.words, data, size);
}

// All of the data, or, with an error of Python, nothing of it.
template <class Algorithm>
bool absorb_all(PyObject* self, const Bytes& bytes) {
  Turn<Algorithm> turn(self);
  if (!turn) return false;
  State<Algorithm>& state = cast<Algorithm>(self)->state;
  if (!has_room(state, bytes.size())) {
    PyErr_Format(PyExc_OverflowError, "data has %zu bytes: more than %s in all", bytes.size(), most_bytes(state));
    return false;
  }
  if (bytes.size() <= keeps_lock) {
    absorb(state, bytes.data(), bytes.size());
    return true;
  }
  if (bytes.size() < one_thread) {
    const Unlocked unlocked;
    absorb(state, bytes.data(), bytes.size());
    return true;
  }
  State<Algorithm> next = state;
  try {
    for (std::size_t begin = 0; begin < bytes.size(); begin += slice_bytes) {
      if (begin > 0 && !turn.look()) return false;
      const Unlocked unlocked;
      absorb(next, bytes.data() + begin, std::min(slice_bytes, bytes.size() - begin));
    }
  } catch (const std::exception& error) {  // of the threads, which could not be started
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return false;
  }
  state = next;
  return true;
}

template <class Algorithm>
PyObject* update(PyObject* self, PyObject* data) {
  Bytes bytes;
  if (!bytes.take(data, "data") || !absorb_all<Algorithm>(self, bytes)) return nullptr;
  Py_INCREF(self);
  return self;
}

constexpr std::uint32_t initial_value[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                            0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};

// The state of docs/hashing.md, but for entries of the stack that are not in use.
void start(State<Blake3Algorithm>& state) {
  constexpr std::size_t stack = 12, buffer = 444;
  state.limit = 0;
  state.leaf.known = false;
  std::memcpy(state.words, initial_value, sizeof initial_value);
  std::fill(state.words + 8, state.words + stack, 0u);
  std::fill(state.words + buffer, state.words + blake3_state_words, 0u);
}

void start(State<Sha256Algorithm>& state) {
  std::memcpy(state.words, initial_value, sizeof initial_value);
  std::fill(state.words + 8, state.words + Sha256Algorithm::words, 0u);
}

// Where nobody has added to our type, most of the object's 3 KB stay as they are: unused entries of a stack.
template <class Algorithm>
PyObject* allocate(PyTypeObject* type) {
  const bool ours = type->tp_basicsize == Py_ssize_t{sizeof(Hasher<Algorithm>)} && !PyType_IS_GC(type);
  PyObject* self = ours ? reinterpret_cast<PyObject*>(PyObject_New(Hasher<Algorithm>, type)) : type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  new (&cast<Algorithm>(self)->mutex) std::mutex;
  new (&cast<Algorithm>(self)->looking) std::atomic<unsigned long>(0);
  return self;
}

template <class Algorithm>
PyObject* copy(PyObject* self, PyObject*) {
  PyObject* made = allocate<Algorithm>(Py_TYPE(self));
  if (made == nullptr) return nullptr;
  const Turn<Algorithm> turn(self);
  if (turn) {
    cast<Algorithm>(made)->state = cast<Algorithm>(self)->state;
    return made;
  }
  Py_DECREF(made);
  return nullptr;
}

// What `other`, of the same class, has absorbed.
PyObject* blake3_assume(PyObject* self, PyObject* other) {
  if (Py_TYPE(other) != Py_TYPE(self)) {
    PyErr_Format(PyExc_TypeError, "other is a %s, expected a %s", Py_TYPE(other)->tp_name, Py_TYPE(self)->tp_name);
    return nullptr;
  }
  const Turn<Blake3Algorithm> turn(self);
  if (!turn) return nullptr;
  cast<Blake3Algorithm>(self)->state = cast<Blake3Algorithm>(other)->state;
  Py_RETURN_NONE;
}

// --- Digests ---------------------------------------------------------------------------------------------------------

struct Part {
  std::uint64_t length = 32, seek = 0;
};

// length=32, *, seek=0
bool part_of(PyObject* const* arguments, Py_ssize_t count, PyObject* names, Part& part) {
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  bool given = count > 0;
  if (count > 1) {
    PyErr_Format(PyExc_TypeError, "digest takes at most 1 positional argument, length, but %zd were given", count);
    return false;
  }
  if (given && !whole(arguments[0], "length", 0, part.length)) return false;
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (PyUnicode_CompareWithASCIIString(name, "seek") == 0) {
      if (!whole(arguments[count + i], "seek", 0, part.seek)) return false;
    } else if (!given && PyUnicode_CompareWithASCIIString(name, "length") == 0) {
      if (!whole(arguments[count + i], "length", 0, part.length)) return false;
    } else {
      PyErr_Format(PyExc_TypeError, "digest got an unexpected or repeated argument %R", name);
      return false;
    }
  }
  if (part.length <= std::numeric_limits<std::uint64_t>::max() - part.seek) return true;
  PyErr_Format(PyExc_ValueError, "seek is %llu and length %llu, expected a sum of at most 2^64 - 1",
               static_cast<unsigned long long>(part.seek), static_cast<unsigned long long>(part.length));
  return false;
}

PyObject* blake3_bytes(PyObject* self, const Part& part) {
  if (part.length > static_cast<std::uint64_t>(PY_SSIZE_T_MAX)) return PyErr_NoMemory();
  PyObject* made = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(part.length));
  if (made == nullptr) return nullptr;
  auto* out = reinterpret_cast<unsigned char*>(PyBytes_AS_STRING(made));
  const Turn<Blake3Algorithm> turn(self);
  if (!turn) {
    Py_DECREF(made);
    return nullptr;
  }
  const State<Blake3Algorithm>& state = cast<Blake3Algorithm>(self)->state;
  if (part.length <= keeps_lock) {
    blake3_output(state.words, out, part.length, part.seek, &state.leaf);
    return made;
  }
  const Unlocked unlocked;
  blake3_output(state.words, out, part.length, part.seek, &state.leaf);
  return made;
}

PyObject* blake3_digest(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  Part part;
  return part_of(arguments, count, names, part) ? blake3_bytes(self, part) : nullptr;
}

PyObject* sha256_digest(PyObject* self, PyObject*) {
  unsigned char out[32];
  const Turn<Sha256Algorithm> turn(self);
  if (!turn) return nullptr;
  sha256_output(cast<Sha256Algorithm>(self)->state.words, out);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(out), sizeof out);
}

// Takes the bytes over.
PyObject* hexadecimal(PyObject* bytes) {
  if (bytes == nullptr) return nullptr;
  PyObject* text = PyObject_CallMethod(bytes, "hex", nullptr);
  Py_DECREF(bytes);
  return text;
}

PyObject* blake3_hexdigest(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  return hexadecimal(blake3_digest(self, arguments, count, names));
}

PyObject* sha256_hexdigest(PyObject* self, PyObject*) { return hexadecimal(sha256_digest(self, nullptr)); }

PyObject* blake3_reset(PyObject* self, PyObject*) {
  const Turn<Blake3Algorithm> turn(self);
  if (!turn) return nullptr;
  State<Blake3Algorithm>& state = cast<Blake3Algorithm>(self)->state;
  std::uint32_t key[9];  // and mode
  std::memcpy(key, state.words, sizeof key);
  const std::size_t limit = state.limit;
  start(state);
  std::memcpy(state.words, key, sizeof key);
  state.limit = limit;
  Py_INCREF(self);
  return self;
}

// --- Construction ----------------------------------------------------------------------------------------------------

bool is_none(PyObject* object) { return object == nullptr || object == Py_None; }

struct Keywords {
  PyObject *key = nullptr, *context = nullptr, *max_threads = nullptr;
};

// -1 is blake3.AUTO.
bool is_auto(PyObject* max_threads) {
  int beyond = 0;
  return is_none(max_threads) ||
         (PyLong_CheckExact(max_threads) && PyLong_AsLongLongAndOverflow(max_threads, &beyond) == -1 && beyond == 0);
}

// False with an error of Python.
bool set_up(State<Blake3Algorithm>& state, const Keywords& given) {
  if (!is_auto(given.max_threads)) {
    std::uint64_t limit;
    if (!whole(given.max_threads, "max_threads", 1, limit)) return false;
    state.limit = static_cast<std::size_t>(limit);
  }
  if (!is_none(given.key)) {
    if (!is_none(given.context)) {
      PyErr_SetString(PyExc_ValueError, "key and derive_key_context are both given, expected at most one of them");
      return false;
    }
    Bytes key;
    if (!key.take(given.key, "key")) return false;
    if (key.size() != 32) {
      PyErr_Format(PyExc_ValueError, "key has %zu bytes, expected 32", key.size());
      return false;
    }
    std::memcpy(state.words, key.data(), 32);
    state.words[8] = keyed_hash;
  } else if (!is_none(given.context)) {
    if (!PyUnicode_Check(given.context)) {
      const char* kind = Py_TYPE(given.context)->tp_name;
      const char* article = std::strchr("aeioAEIO", *kind) != nullptr ? "an" : "a";
      PyErr_Format(PyExc_TypeError, "derive_key_context is %s %s, expected a str", article, kind);
      return false;
    }
    Py_ssize_t size;
    const char* text = PyUnicode_AsUTF8AndSize(given.context, &size);
    if (text == nullptr) {
      if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_SetString(PyExc_ValueError,
                        "derive_key_context is a str that has no UTF-8 form (surrogates not allowed), expected text");
      return false;
    }
    State<Blake3Algorithm> context;
    start(context);
    context.words[8] = derive_key_context;
    context.limit = 1;
    absorb(context, reinterpret_cast<const unsigned char*>(text), static_cast<std::size_t>(size));
    unsigned char key[32];  // section 2.3 of the paper
    blake3_output(context.words, key, sizeof key, 0);
    std::memcpy(state.words, key, sizeof key);
    state.words[8] = derive_key_material;
  }
  return true;
}

bool set_up(State<Sha256Algorithm>&, const Keywords&) { return true; }

template <class Algorithm>
bool parse(PyObject* arguments, PyObject* names, PyObject*& data, Keywords& given) {
  const Py_ssize_t count = PyTuple_GET_SIZE(arguments);
  if (count > 1) {
    PyErr_Format(PyExc_TypeError, "%s takes at most 1 positional argument, data, but %zd were given", Algorithm::name,
                 count);
    return false;
  }
  if (count == 1) data = PyTuple_GET_ITEM(arguments, 0);
  PyObject *name, *value;
  for (Py_ssize_t at = 0; names != nullptr && PyDict_Next(names, &at, &name, &value);) {
    constexpr bool keyed = Algorithm::words == blake3_state_words;
    if (keyed && PyUnicode_CompareWithASCIIString(name, "key") == 0)
      given.key = value;
    else if (keyed && PyUnicode_CompareWithASCIIString(name, "max_threads") == 0)
      given.max_threads = value;
    else if (keyed && PyUnicode_CompareWithASCIIString(name, "derive_key_context") == 0)
      given.context = value;
    else {
      PyErr_Format(PyExc_TypeError, "%s got an unexpected keyword argument %R", Algorithm::name, name);
      return false;
    }
  }
  return true;
}

template <class Algorithm>
PyObject* create(PyTypeObject* type, PyObject* arguments, PyObject* names) {
  auto* const portable = reinterpret_cast<PyTypeObject*>(Algorithm::portable_type);
  if (portable != nullptr && PyType_IsSubtype(type, portable)) return allocate<Algorithm>(type);
  const int other = elsewhere();
  if (other < 0) return nullptr;
  if (other != 0) {
    if (reinterpret_cast<PyObject*>(type) == Algorithm::public_type) return allocate<Algorithm>(portable);  // and init
    PyErr_Format(PyExc_TypeError,
                 "%s is a subclass of %s, which runs on the native backend only, but another is forced", type->tp_name,
                 Algorithm::name);
    return nullptr;
  }
  PyObject* data = nullptr;
  Keywords given;
  if (!parse<Algorithm>(arguments, names, data, given)) return nullptr;
  PyObject* self = allocate<Algorithm>(type);
  if (self == nullptr) return nullptr;
  State<Algorithm>& state = cast<Algorithm>(self)->state;
  start(state);
  Bytes bytes;
  if (set_up(state, given) && (data == nullptr || (bytes.take(data, "data") && absorb_all<Algorithm>(self, bytes))))
    return self;
  Py_DECREF(self);
  return nullptr;
}

template <class Algorithm>
void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  cast<Algorithm>(self)->mutex.~mutex();
  type->tp_free(self);
  Py_DECREF(type);
}

template <class Algorithm>
PyObject* make_type(const char* name, PyMethodDef* methods) {
  PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(&create<Algorithm>)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(&destroy<Algorithm>)},
                         {Py_tp_methods, methods},
                         {0, nullptr}};
  PyType_Spec spec = {name, int{sizeof(Hasher<Algorithm>)}, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) throw py::error_already_set();
  return type;
}

PyCFunction with_names(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// What aisec_fast.hashing makes of the types: its public classes and their portable subclasses. And where to look for
// the backend that is forced, and which dtypes hold numbers.
void set_hashers(const py::object& variable, const py::list& dtypes, const py::object& blake3,
                 const py::object& portable_blake3, const py::object& sha256, const py::object& portable_sha256) {
  const auto keep = [](PyObject*& place, const py::object& object) {
    Py_XDECREF(place);
    place = py::object(object).release().ptr();
  };
  keep(forced_backend, variable);
  number_types.clear();
  for (const py::handle dtype : dtypes) number_types.push_back(dtype.inc_ref().ptr());
  keep(Blake3Algorithm::public_type, blake3);
  keep(Blake3Algorithm::portable_type, portable_blake3);
  keep(Sha256Algorithm::public_type, sha256);
  keep(Sha256Algorithm::portable_type, portable_sha256);
}

}  // namespace

void bind_hashers(py::module_& module) {
  static PyMethodDef blake3_methods[] = {
      {"update", &update<Blake3Algorithm>, METH_O, "Absorb data; returns the hasher."},
      {"digest", with_names(&blake3_digest), METH_FASTCALL | METH_KEYWORDS, "Bytes of the output stream."},
      {"hexdigest", with_names(&blake3_hexdigest), METH_FASTCALL | METH_KEYWORDS, "digest() in hexadecimal digits."},
      {"copy", &copy<Blake3Algorithm>, METH_NOARGS, "An independent hasher with the same state."},
      {"reset", &blake3_reset, METH_NOARGS, "Forget what was absorbed; mode and key stay. Returns the hasher."},
      {"_assume", &blake3_assume, METH_O, "Take over another hasher's state."},
      {nullptr, nullptr, 0, nullptr}};
  static PyMethodDef sha256_methods[] = {
      {"update", &update<Sha256Algorithm>, METH_O, "Absorb data; returns the hasher."},
      {"digest", &sha256_digest, METH_NOARGS, "The digest, 32 bytes."},
      {"hexdigest", &sha256_hexdigest, METH_NOARGS, "The digest as 64 hexadecimal digits."},
      {"copy", &copy<Sha256Algorithm>, METH_NOARGS, "An independent hasher with the same state."},
      {nullptr, nullptr, 0, nullptr}};
  module.attr("Blake3") =
      py::reinterpret_steal<py::object>(make_type<Blake3Algorithm>("aisec_fast._core.Blake3", blake3_methods));
  module.attr("Sha256") =
      py::reinterpret_steal<py::object>(make_type<Sha256Algorithm>("aisec_fast._core.Sha256", sha256_methods));
  module.def("set_hashers", &set_hashers, py::arg("forced"), py::arg("dtypes"), py::arg("blake3"),
             py::arg("portable_blake3"), py::arg("sha256"), py::arg("portable_sha256"));
}

}  // namespace aisec_fast
