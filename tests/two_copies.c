/* Two engines in one program: logits_hash.c and folollm.c are compiled twice, with FOLOLLM_PREFIX a_ and b_ and with
 * main renamed alike. Prints what both print, one after the other. */
int a_main(int argc, char **argv);
int b_main(int argc, char **argv);

int main(int argc, char **argv) {
    return a_main(argc, argv) != 0 || b_main(argc, argv) != 0;
}
