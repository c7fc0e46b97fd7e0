#include <stdio.h>

int main(void) {
    puts("hello from a small cask");
    return 0;
}
