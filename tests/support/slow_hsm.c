/* A PKCS#11 library that is slow: it hands everything on to the one that SLOW_HSM_MODULE names, and before every
   signature it sleeps for as many milliseconds as the file SLOW_HSM_FILE says at that moment (none without the file).
   With -1 the device has been removed; with -2 what it gives is not a signature, and it says that all is well.

   Built by support/slow_hsm.py. Only the layout of CK_FUNCTION_LIST is known here: a version, then 68 functions. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define FUNCTIONS 68
#define C_SIGN 43
#define CKR_GENERAL_ERROR 0x5
#define CKR_DEVICE_REMOVED 0x32

typedef unsigned long CK_RV;
struct function_list {
    unsigned char major, minor;
    void *functions[FUNCTIONS];
};

static struct function_list handed_out;
static CK_RV (*sign)(unsigned long, void *, unsigned long, void *, unsigned long *);

static CK_RV slow_sign(unsigned long session, void *data, unsigned long length, void *signature, unsigned long *room) {
    const char *name = getenv("SLOW_HSM_FILE");
    FILE *file = name ? fopen(name, "r") : NULL;
    long milliseconds = 0;
    if (file) {
        if (fscanf(file, "%ld", &milliseconds) != 1)
            milliseconds = 0;
        fclose(file);
    }
    if (milliseconds == -1)
        return CKR_DEVICE_REMOVED;
    if (milliseconds > 0) {
        struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    CK_RV value = sign(session, data, length, signature, room);
    if (milliseconds == -2 && !value && signature)
        ((unsigned char *)signature)[*room / 2] ^= 1;
    return value;
}

CK_RV C_GetFunctionList(struct function_list **list) {
    const char *module = getenv("SLOW_HSM_MODULE");
    void *library = module ? dlopen(module, RTLD_NOW | RTLD_LOCAL) : NULL;
    CK_RV (*get)(struct function_list **);
    struct function_list *real;
    if (!library || !(*(void **)&get = dlsym(library, "C_GetFunctionList")))
        return CKR_GENERAL_ERROR;
    CK_RV value = get(&real);
    if (value)
        return value;
    handed_out = *real;
    *(void **)&sign = real->functions[C_SIGN];
    handed_out.functions[C_SIGN] = (void *)slow_sign;
    *list = &handed_out;
    return 0;
}
