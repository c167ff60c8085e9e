/* The one compiled module: what touches every number of a checkpoint, without NumPy's many passes.
 *
 * x86-64 with F16C and AVX2 (AVX-512 is used for blocks where it is there), and aarch64; elsewhere
 * the module is not importable, and NumPy does the same, bit for bit. All buffers are contiguous,
 * little endian; sizes are checked before the lock of the interpreter is let go. Sums and products
 * are not contracted (-ffp-contract=off in setup.py).
 */

#include "_kernels.h"

#if defined(__x86_64__)
static int has_instructions(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}
#else
static int has_instructions(void) { return 1; }
#endif

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Halves and blocks by the processor's own instructions.", -1,
    NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    if (!has_instructions()) {
        PyErr_SetString(PyExc_ImportError, "this processor has no instructions for halves");
        return NULL;
    }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    if (PyModule_AddFunctions(module, halves_methods) < 0 ||
        PyModule_AddFunctions(module, blocks_methods) < 0 ||
        PyModule_AddFunctions(module, channels_methods) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
