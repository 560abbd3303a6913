package org.example.plan

import scala.collection.mutable
import scala.util.{Failure, Success, Try}

/** What a step is — größer. */
sealed trait Step {
  def cost: Int
  def label: String = s"step of $cost"
}

object Step {
  case class Read(path: String) extends Step {
    override def cost: Int = path.length
  }
  case object Stop extends Step {
    val cost = 0
  }

  implicit class Steps(private val steps: Seq[Step]) extends AnyVal {
    def total: Int = steps.map(_.cost).sum
  }
}

/**
 * A plan of steps.
 */
class Plan[T <: Step](val name: String, steps: T*)(implicit ord: Ordering[Int]) extends Ordered[Plan[T]] {
  import Step._

  private val done = mutable.Buffer.empty[T]
  lazy val total: Int = steps.map(_.cost).sum
  var isOver = false

  def this(name: String) = this(name, Seq.empty[T]: _*)

  // A comment between members.
  def run(limit: Int = 10): Try[Int] = Try {
    for {
      step <- steps
      if step.cost < limit
    } yield {
      done += step
      step.cost
    }
  }.map(_.sum)

  override def compare(that: Plan[T]): Int = ord.compare(total, that.total)

  def describe: String = run() match {
    case Success(cost) if cost > 0 => s"cost $cost 🎉"
    case Success(_) => "free"
    case Failure(error) =>
      error.getMessage
  }

  type Result = Either[String, Int]
}

trait Runs { self: Plan[_] =>
  protected def before(): Unit = ()
  def after(): Unit
}

abstract class Base(val id: Long) {
  def next: Base
}

object Main extends App {
  val plan = new Plan[Step.Read]("main", Step.Read("a"), Step.Read("b"))
  val text =
    """a raw
      |string""".stripMargin

  def main(count: Int): Unit = {
    var left = count
    while (left > 0) {
      println(plan.describe)
      left -= 1
    }
  }

  main(2)
}
