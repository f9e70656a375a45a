package io.github.gatedfwa.nativeops;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.extension.AfterAllCallback;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.ConditionEvaluationResult;
import org.junit.jupiter.api.extension.ExecutionCondition;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.extension.ExtensionContext.Namespace;

/**
 * Tests that need a GPU. They run where {@value NativeLibrary#DEVICE_PROPERTY} asks for one and it
 * is there; elsewhere they are skipped, with the reason. A class that ran and put no call on the
 * GPU fails.
 */
@Target(ElementType.TYPE)
@Retention(RetentionPolicy.RUNTIME)
@Tag("gpu")
@ExtendWith(OnGpu.Gpu.class)
public @interface OnGpu {

  /** Looks for the GPU, and whether it was used. */
  final class Gpu implements ExecutionCondition, BeforeAllCallback, AfterAllCallback {

    private static final Namespace NAMESPACE = Namespace.create(Gpu.class);

    @Override
    public ConditionEvaluationResult evaluateExecutionCondition(ExtensionContext context) {
      String asked = System.getProperty(NativeLibrary.DEVICE_PROPERTY, "auto");
      String device = NativeLibrary.device();
      if (asked.startsWith("cuda") && device.startsWith("cuda")) {
        return ConditionEvaluationResult.enabled(device);
      }
      return ConditionEvaluationResult.disabled(
          "needs a GPU and the system property "
              + NativeLibrary.DEVICE_PROPERTY
              + "=cuda; here it is "
              + asked
              + " and the ops run on the "
              + device);
    }

    @Override
    public void beforeAll(ExtensionContext context) {
      context
          .getStore(NAMESPACE)
          .put(context.getUniqueId(), NativeLibrary.deviceUsage().deviceCalls());
    }

    @Override
    public void afterAll(ExtensionContext context) {
      long before = context.getStore(NAMESPACE).get(context.getUniqueId(), Long.class);
      if (NativeLibrary.deviceUsage().deviceCalls() == before) {
        throw new AssertionError("no call of " + context.getDisplayName() + " ran on the GPU");
      }
    }
  }
}
