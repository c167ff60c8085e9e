/* A double of libcudart for what ctypes passes: host memory, and the arguments as C gets them. */
#include <stdlib.h>
#include <string.h>

static size_t taken;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 0) return 1;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return 0;
}
int cudaGetDeviceProperties_v2(char *properties, int device) {
    memset(properties, 0, 1008); /* the size of cudaDeviceProp in CUDA 12 */
    strcpy(properties, "Orin (double in C)");
    return device;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = (size_t)1 << 40; /* more than 32 bits hold */
    *free_bytes = *total - taken;
    return 0;
}
int cudaDriverGetVersion(int *version) { *version = 13010; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
int cudaMalloc(void **pointer, size_t size) {
    if (size > ((size_t)1 << 33)) return 2;
    taken += size;
    *pointer = malloc(size);
    return 0;
}
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if ((kind != 1 && kind != 2) || stream != (void *)0x7f0123456789) return 1;
    memcpy(to, from, size);
    return 0;
}
int cudaStreamCreate(void **stream) { *stream = (void *)0x7f0123456789; return 0; }
int cudaStreamSynchronize(void *stream) { return stream != (void *)0x7f0123456789; }
int cudaStreamDestroy(void *stream) { return stream != (void *)0x7f0123456789; }
int cudaStreamBeginCapture(void *stream, int mode) { return stream == NULL || mode != 1; }
int cudaStreamEndCapture(void *stream, void **graph) {
    *graph = (void *)0x7f0000000001;
    return stream == NULL;
}
int cudaGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    *made = (void *)0x7f0000000002;
    return graph != (void *)0x7f0000000001 || flags != 0;
}
int cudaGraphDestroy(void *graph) { return graph != (void *)0x7f0000000001; }
int cudaGraphLaunch(void *made, void *stream) {
    return made != (void *)0x7f0000000002 || stream != (void *)0x7f0123456789;
}
int cudaGraphExecDestroy(void *made) { return made != (void *)0x7f0000000002; }
const char *cudaGetErrorString(int status) { return status == 2 ? "out of memory" : "invalid"; }
