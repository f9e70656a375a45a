/** Programs that show the attention at work: train a language model, generate text, use the op. */
package io.github.gatedfwa.examples;
